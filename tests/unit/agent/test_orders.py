# SPDX-License-Identifier: MIT
"""Operators' orders in the daemon's loop, and the VMs that are halted for another's failure."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import msgspec
import pytest

from credferry.agent.audit.events import Event, Order
from credferry.agent.errors import OrderError, StoreError
from credferry.agent.reconcile.decision import State
from credferry.agent.rollout.operators import Operator
from credferry.agent.store.records import Outcome
from tests.support.loop import Loop

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

A = '[vms.a.credentials]\nX = { secret = "x" }\nO = { secret = "o", required = false }\n'
B = '[vms.b]\nafter = ["a"]\n[vms.b.credentials]\nX = { secret = "x" }\n'
UNITS = {"a": "microvm@a.service", "b": "microvm@b.service"}
ROOT, JANE = Operator(0), Operator(1234, "a test")


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Loop]:
    """A service with two VMs of one secret, which run what is published; one attempt for each restart."""
    made = Loop(tmp_path, A + B)
    made.configure(A + B, "attempts = 1")
    made.publish(x="one")
    with made.running():
        made.turn()
        for vm in UNITS:
            made.start_vm(vm)
        made.turn(lambda: in_step(made))
        yield made


def in_step(loop: Loop) -> bool:
    """Whether both VMs run what is published."""
    return all(loop.decision(vm).state is State.IN_STEP for vm in UNITS)


def state(loop: Loop, vm: str) -> State:
    """Where a VM stands."""
    return loop.decision(vm).state


def fields(loop: Loop, event: Event) -> list[dict[str, str]]:
    """The audit's records of a kind."""
    found = [dict(field.partition("=")[::2] for field in record) for record in loop.sent]
    return [each for each in found if each["MESSAGE_ID"] == event.value]


def break_a(loop: Loop) -> None:
    """Publish what the first VM does not start on: it is put back, and the second is halted."""
    loop.units.job = lambda unit: fail_a(loop, unit)
    loop.publish(x="two")
    loop.turn(lambda: state(loop, "a") is State.FAILED and state(loop, "b") is State.HALTED)
    assert fields(loop, Event.HALTED)
    assert loop.units.restarts.count(UNITS["b"]) == 0


def fail_a(loop: Loop, unit: str) -> str:
    """A restart of the first VM fails where it is onto the second value; all else goes well."""
    manifest = loop.store.current("a")
    if unit == UNITS["a"] and manifest is not None and manifest.generation != 1:
        loop.units.set(unit, active="failed", sub="failed", result="exit-code", invocation_id="f" * 32)
        return "failed"
    loop.start_vm("a" if unit == UNITS["a"] else "b")
    return "done"


def mend_a(loop: Loop) -> None:
    """From now on the first VM starts on everything."""
    loop.units.job = loop._restart


def test_a_retry_that_goes_well_frees_the_halted(loop: Loop) -> None:
    """The halted VM is restarted once the other runs well, and not before."""
    break_a(loop)
    loop.service._orders.give("a", Order.RETRY, ROOT)
    loop.turn(lambda: state(loop, "a") is State.FAILED)
    assert state(loop, "b") is State.HALTED, "the retry has failed as well"
    mend_a(loop)
    loop.service._orders.give("a", Order.RETRY, ROOT)
    loop.turn(lambda: in_step(loop))
    assert loop.units.restarts.count(UNITS["b"]) == 1
    assert len(fields(loop, Event.HALTED)) == 1


def test_another_value_for_the_failed_one_alone_frees_the_halted(loop: Loop) -> None:
    """What had failed is published no more; the halted VM's own value is still the same."""
    break_a(loop)
    mend_a(loop)
    loop.publish(x="two", o="of the first VM alone")
    loop.turn(lambda: in_step(loop))
    assert loop.units.restarts.count(UNITS["b"]) == 1


def test_a_failed_vm_that_is_removed_frees_the_halted(loop: Loop) -> None:
    """Its failure concerns nobody any more."""
    break_a(loop)
    loop.configure(B.replace('after = ["a"]\n', ""), "attempts = 1")
    loop.service._reload()
    loop.turn(lambda: loop.decision("b").state is State.IN_STEP)
    assert loop.units.restarts.count(UNITS["b"]) == 1


def test_without_a_source_the_halt_stands(loop: Loop) -> None:
    """That nothing can be read tells nothing of the failure."""
    break_a(loop)
    (loop.top / "secrets").unlink()
    assert loop.service._session.observer.has_failed("a")
    assert not loop.service._session.observer.has_failed("b"), "it is halted, and has not failed"
    assert not loop.service._session.observer.has_failed("c")


def test_a_release_ends_a_halt(loop: Loop) -> None:
    """An operator who releases the halted VM has it restarted, whatever becomes of the other."""
    break_a(loop)
    loop.service._orders.give("b", Order.RELEASE, JANE)
    loop.turn(lambda: state(loop, "b") is State.IN_STEP)
    assert state(loop, "a") is State.FAILED
    (asked,) = [each for each in fields(loop, Event.RESTART_ASKED) if each["CREDFERRY_VM"] == "b"]
    assert asked["CREDFERRY_RUN"] == fields(loop, Event.ORDERED)[-1]["CREDFERRY_RUN"]


@pytest.mark.parametrize("order", [Order.ROTATE, Order.ROLL_BACK, Order.RETRY])
def test_what_follows_from_an_order_has_its_run(loop: Loop, order: Order) -> None:
    """The order is recorded first, with who gave it; the restart's records have the order's run."""
    if order is Order.ROLL_BACK:
        loop.publish(x="two")
        loop.turn(lambda: in_step(loop) and loop.units.restarts)
    if order is Order.RETRY:
        break_a(loop)
        mend_a(loop)
    before = len(loop.told())
    run = loop.service._orders.give("a", order, JANE)
    wanted = State.ROLLED_BACK if order is Order.ROLL_BACK else State.IN_STEP
    loop.turn(lambda: state(loop, "a") is wanted and not loop.service._orders.pending())
    event, message = loop.told()[before]
    assert (event, message) == (Event.ORDERED, f"a: {order.value} ordered by user 1234: a test")
    told = fields(loop, Event.ORDERED)[-1]
    assert (told["CREDFERRY_CALLER_UID"], told["CREDFERRY_REASON"]) == ("1234", "a test")
    assert (told["CREDFERRY_ORDER"], told["CREDFERRY_RUN"]) == (order.value, run)
    end = Event.ROLLED_BACK if order is Order.ROLL_BACK else Event.RESTARTED
    ends = [each for each in fields(loop, end) if each["CREDFERRY_VM"] == "a"]
    assert ends[-1]["CREDFERRY_RUN"] == run
    assert loop.verify() == ()


def test_an_order_whose_vm_a_reload_removes(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is dropped, with a record; the VM that comes back is left alone."""
    monkeypatch.setattr(loop.service._restarts, "ask", lambda _look: None)  # the order waits for its turn
    run = loop.service._orders.give("b", Order.ROTATE, ROOT)
    loop.configure(A, "attempts = 1")
    loop.service._reload()
    monkeypatch.undo()
    assert loop.service._orders.pending() == set()
    (dropped,) = fields(loop, Event.ORDER_DROPPED)
    assert dropped["MESSAGE"] == "b: rotate is dropped: the configuration no longer has this VM"
    assert dropped["CREDFERRY_RUN"] == run
    loop.configure(A + B, "attempts = 1")
    loop.service._reload()
    loop.turn(lambda: in_step(loop))
    assert loop.units.restarts == []
    assert loop.service._orders.result("b") == ""


def test_an_order_that_the_vm_cannot_take_any_more(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The VM was stopped after the order was given: the order is dropped, with a record, and says why."""
    monkeypatch.setattr(loop.service._restarts, "ask", lambda _look: None)
    loop.service._orders.give("a", Order.ROTATE, ROOT)
    loop.stop_vm("a")
    monkeypatch.undo()
    loop.turn(lambda: not loop.service._orders.pending())
    (dropped,) = fields(loop, Event.ORDER_DROPPED)
    assert "does not run" in dropped["MESSAGE"]
    assert "does not run" in loop.service._orders.result("a")
    assert loop.units.restarts == []


def test_orders_that_are_left_when_the_agent_stops(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are dropped with a record: nobody carries them out later."""
    monkeypatch.setattr(loop.service._restarts, "ask", lambda _look: None)
    loop.service._orders.give("a", Order.ROTATE, ROOT)
    loop.service._orders.abandon()
    (dropped,) = fields(loop, Event.ORDER_DROPPED)
    assert dropped["MESSAGE"] == "a: rotate is dropped: the agent stops"
    assert loop.service._orders.pending() == set()


# An approval needs another policy: see test_approval.py.
@pytest.mark.parametrize("order", [order for order in Order if order is not Order.APPROVE])
def test_an_order_that_cannot_be_recorded_is_not_given(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, order: Order
) -> None:
    """On a full disk the operator is told, and the VM is left as it is."""
    loop.publish(x="two")
    loop.turn(lambda: in_step(loop) and loop.units.restarts)
    restarts = list(loop.units.restarts)

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("credferry.agent.audit.writer.replace_durably", fail)
    with pytest.raises(StoreError, match="cannot write the number"):
        loop.service._orders.give("a", order, ROOT)
    monkeypatch.undo()
    loop.turn(lambda: in_step(loop))
    assert loop.units.restarts == restarts
    assert not loop.store.is_held("a")
    assert loop.service._orders.pending() == set()


def test_a_refused_order_is_not_recorded(loop: Loop) -> None:
    """One that the VM cannot take, a second one at a time, and one with a long reason."""
    with pytest.raises(OrderError, match="longer than 200"):
        Operator.of_user(0, "x" * 201)
    loop.stop_vm("a")
    with pytest.raises(OrderError, match="does not run"):
        loop.service._orders.give("a", Order.ROTATE, ROOT)
    assert fields(loop, Event.ORDERED) == []


def test_a_halt_of_an_older_agent_stands(loop: Loop) -> None:
    """It does not say for whom it halted: it ends with another value, or by an operator, as before."""
    break_a(loop)
    store = loop.store
    halted = store.attempt("b")
    assert halted is not None
    assert (halted.outcome, halted.halted_for) == (Outcome.HALTED, "a")
    mend_a(loop)

    store.record_attempt("b", msgspec.structs.replace(halted, halted_for=""))
    loop.service._orders.give("a", Order.RETRY, ROOT)
    loop.turn(lambda: state(loop, "a") is State.IN_STEP)
    assert state(loop, "b") is State.HALTED
    loop.service._orders.give("b", Order.RETRY, ROOT)
    loop.turn(lambda: in_step(loop))
