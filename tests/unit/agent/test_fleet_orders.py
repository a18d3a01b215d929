# SPDX-License-Identifier: MIT
"""Orders of operators in a fleet whose workers begin late: after the loop has settled with the fleet."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pytest

from credferry.agent.audit.events import Order
from credferry.agent.reconcile.decision import State
from credferry.agent.rollout.dispatcher import Dispatcher
from tests.support.host import patience
from tests.unit.agent.test_fleet_rollout import FLEET, OTHER, ROOT, B, Fleet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

KINDS = (Order.ROTATE, Order.RESTART, Order.ROLL_BACK)
_SECONDS = 20.0
_REQUESTS_MAX = 40
"""An order asks once: some requests, and some more to give the slot back."""


@dataclass
class LateWorkers:
    """Has each worker begin only once the loop has ended another turn; at once before `hold_up`."""

    turns: int = 0
    is_open: bool = True
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def hire(self, work: Callable[[str], None], slots: int, slot_seconds: float) -> Dispatcher:
        """See `Parts.hire`."""

        def work_late(name: str) -> None:
            with self._changed:
                before = self.turns
                self._changed.wait_for(
                    lambda: self.is_open or self.turns > before, timeout=_SECONDS * patience()
                )
            work(name)

        return Dispatcher(work_late, slots, slot_seconds)

    def hold_up(self, *, is_open: bool = False) -> None:
        """Have workers begin late from now on; or at once."""
        with self._changed:
            self.is_open = is_open
            self._changed.notify_all()

    def turn_has_ended(self) -> None:
        """Let those begin that have waited for this turn."""
        with self._changed:
            self.turns += 1
            self._changed.notify_all()


@dataclass
class SlowHost:
    """A host of a fleet, with its late workers."""

    fleet: Fleet
    workers: LateWorkers

    def order(self, kind: Order) -> None:
        """Give an order on the VM ``a``."""
        self.fleet.loop.service._orders.give("a", kind, ROOT)

    def turn(self, until: Callable[[], object]) -> None:
        """Make turns until the condition holds. They end the work of a worker that has waited for them."""
        asked = self.fleet.member.requests

        def has_come() -> bool:
            self.workers.turn_has_ended()
            assert self.fleet.member.requests - asked < _REQUESTS_MAX, "it asks without end"
            return bool(until())

        self.fleet.loop.turn(has_come)

    @property
    def result(self) -> str | None:
        """How the order has ended: why it failed, or the empty text. None before it has."""
        orders = self.fleet.loop.service._orders
        return None if orders.given("a") is not None else orders.result("a")

    def turn_to_the_answer(self) -> None:
        """Make turns until the order has an answer, and has not used it."""
        end = time.monotonic() + _SECONDS * patience()
        while self.fleet.claim() is None or self.fleet.slots.is_asking("a"):
            self.fleet.loop.turn()
            if self.fleet.claim() is None:
                self.workers.turn_has_ended()
            assert time.monotonic() < end, "the order asks nobody"
        assert self.result is None

    def turn_to_the_end(self) -> str:
        """Make turns until the order has ended, and nothing is held or claimed. Returns why it failed."""
        self.turn(lambda: self.result is not None)
        result = self.result
        assert result is not None
        self.turn(lambda: self.fleet.claim() is None and not self.fleet.view.awaited)
        return result


@pytest.fixture
def host(tmp_path: Path) -> Iterator[SlowHost]:
    """A host with one VM, which has run two generations and is in step. From now on its workers are late."""
    made, workers = Fleet(tmp_path), LateWorkers()
    made.loop.parts = replace(made.loop.parts, hire=workers.hire)
    with made.loop.running():
        try:
            made.begin()
            made.loop.publish(x="two")
            made.loop.turn(lambda: made.is_settled() and made.claim() is None)
            made.during.clear()
            workers.hold_up()
            yield SlowHost(made, workers)
        finally:
            workers.hold_up(is_open=True)


@pytest.mark.parametrize("kind", KINDS)
def test_an_order_that_gets_no_slot_ends(host: SlowHost, kind: Order) -> None:
    """The answer waits for the worker, however late that begins: the order asks once, and is refused."""
    host.fleet.other.acquire("web", OTHER, "r")
    host.order(kind)
    assert "until group web of its fleet has a free slot; 1 of 1" in host.turn_to_the_end()
    assert host.fleet.during == []
    assert host.fleet.held() == ["a on h2"]


@pytest.mark.parametrize("kind", KINDS)
def test_an_order_that_gets_a_slot_ends(host: SlowHost, kind: Order) -> None:
    """The slot waits for the worker: the order is carried out with it, and it is given back."""
    host.order(kind)
    assert host.turn_to_the_end() == ""
    assert host.fleet.during == [["a on h1"]]
    assert host.fleet.held() == []


def test_an_order_on_a_vm_that_waits_for_a_slot_ends(host: SlowHost) -> None:
    """The VM is due and asks again by itself: the order takes the newest answer for its own."""
    host.fleet.slots.uniform = lambda *_: 0.0
    host.fleet.other.acquire("web", OTHER, "r")
    host.fleet.loop.publish(x="three")
    host.workers.hold_up(is_open=True)
    host.fleet.loop.turn(lambda: host.fleet.view.awaited and host.fleet.state() is State.RESTART_DUE)
    host.workers.hold_up()
    host.order(Order.ROTATE)
    host.turn(lambda: host.result is not None)
    assert host.result is not None
    assert "until group web of its fleet has a free slot" in host.result


@pytest.mark.parametrize("is_denied", [True, False])
def test_an_order_that_is_over_keeps_no_slot(host: SlowHost, *, is_denied: bool) -> None:
    """Before the worker begins, the VM is held: the order is refused, and what it was given goes back."""
    if is_denied:
        host.fleet.other.acquire("web", OTHER, "r")
    host.order(Order.RESTART)
    orders, held = host.fleet.loop.service._orders, ["a on h2"] if is_denied else ["a on h1"]
    host.turn_to_the_answer()
    assert host.fleet.held() == held
    orders.give("a", Order.HOLD, ROOT)
    assert host.turn_to_the_end().startswith("a: is held")
    assert host.fleet.held() == held * is_denied
    assert host.fleet.during == []


def test_a_reload_keeps_the_slot_of_an_order(host: SlowHost) -> None:
    """The agent reads its configuration anew before the worker begins: the order is carried out."""
    host.order(Order.RESTART)
    host.turn_to_the_answer()
    host.fleet.loop.service._reload()
    host.fleet.hurry()
    assert host.turn_to_the_end() == ""
    assert host.fleet.during == [["a on h1"]]


def test_an_order_on_a_vm_that_is_removed_keeps_no_slot(host: SlowHost) -> None:
    """A reload removes the VM before the worker begins: the order is dropped, and the slot goes back."""
    host.order(Order.RESTART)
    host.turn_to_the_answer()
    host.fleet.loop.configure(FLEET + B)
    host.fleet.loop.service._reload()
    host.fleet.hurry()
    host.turn(lambda: not host.fleet.held() and host.fleet.claim() is None)
    assert host.result is not None
    assert host.fleet.during == []


def test_an_agent_that_starts_anew_keeps_no_slot(host: SlowHost) -> None:
    """An order ends with the agent. The next one gives the slot back, whose order it does not know."""
    host.order(Order.RESTART)
    host.turn_to_the_answer()
    host.workers.hold_up(is_open=True)
    host.fleet.loop.service._stop.set()
    with host.fleet.loop.running():
        host.fleet.hurry()
        host.fleet.loop.turn(lambda: not host.fleet.held() and host.fleet.claim() is None)
