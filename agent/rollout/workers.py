# SPDX-License-Identifier: MIT
"""Runs each restart in a worker thread, for an operator's order or because it is due."""

from __future__ import annotations

import queue
import threading
import time
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from credferry.agent.audit.events import Order
from credferry.agent.errors import OrderError, describe
from credferry.agent.reconcile.decision import State
from credferry.agent.rollout.pacing import restart_order
from credferry.agent.store.records import Way

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from credferry.agent.config.model import Config
    from credferry.agent.reconcile.observer import Look
    from credferry.agent.rollout.orders import Orders, PendingOrder
    from credferry.agent.rollout.rollout import Rollout
    from credferry.agent.store.generations import Store
    from credferry.agent.systemd.connection import Connection
    from credferry.agent.systemd.units import SystemManager


@dataclass(slots=True)
class _Restart:
    began: float
    is_overdue: bool = False


class Dispatcher:
    """Calls ``work`` with VM names in threads, one thread per VM at a time. ``work`` must not raise."""

    def __init__(self, work: Callable[[str], None], slots: int, slot_seconds: float) -> None:
        self._work = work
        self._slots = slots
        self._slot_seconds = slot_seconds
        self._waiting: OrderedDict[str, None] = OrderedDict()
        self._at_work: dict[str, _Restart] = {}
        self._threads: list[threading.Thread] = []
        self._changed = threading.Condition()
        self._is_stopped = False

    def start(self) -> None:
        """Start the threads."""
        with self._changed:
            self._hire()

    def adjust(self, slots: int, slot_seconds: float) -> None:
        """Apply other limits from now on."""
        with self._changed:
            self._slots, self._slot_seconds = slots, slot_seconds
            if self._threads:
                self._hire()
            self._changed.notify_all()

    def submit(self, names: Iterable[str]) -> None:
        """Queue these VMs in this order. A VM that already waits or is worked on is not queued again."""
        with self._changed:
            for name in names:
                if name not in self._at_work:
                    self._waiting.setdefault(name)
            if self._waiting:  # otherwise each check would wake all threads
                self._changed.notify_all()

    def relieve(self) -> float:
        """Free the slots of overdue restarts; seconds until the next one is overdue, or infinity."""
        with self._changed:
            now = time.monotonic()
            in_time = [restart for restart in self._at_work.values() if not restart.is_overdue]
            for restart in in_time:
                restart.is_overdue = now - restart.began >= self._slot_seconds
            self._hire()
            left = [each.began + self._slot_seconds - now for each in in_time if not each.is_overdue]
        return min(left, default=float("inf"))

    def is_at_work(self, name: str) -> bool:
        """Whether a VM waits for its turn, or is being restarted."""
        with self._changed:
            return name in self._waiting or name in self._at_work

    def forget_waiting(self) -> None:
        """Drop queued work that has not begun; the next check decides again."""
        with self._changed:
            self._waiting.clear()

    def stop(self, seconds: float) -> None:
        """Begin no more work, and wait at most ``seconds`` for the work that has begun."""
        with self._changed:
            self._is_stopped = True
            self._waiting.clear()
            self._changed.notify_all()
            threads = list(self._threads)
        end = time.monotonic() + seconds
        for thread in threads:
            thread.join(timeout=max(0.0, end - time.monotonic()))

    def _hire(self) -> None:
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        while not self._is_stopped and len(self._threads) < self._wanted():
            thread = threading.Thread(target=self._run, name=f"rollout-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _wanted(self) -> int:
        return self._slots + sum(restart.is_overdue for restart in self._at_work.values())

    def _run(self) -> None:
        me = threading.current_thread()
        while True:
            with self._changed:
                while not self._waiting and not self._is_dismissed(me):
                    self._changed.wait()
                if self._is_dismissed(me):
                    self._threads.remove(me)
                    return
                name, _ = self._waiting.popitem(last=False)
                self._at_work[name] = _Restart(time.monotonic())
            try:
                self._work(name)
            finally:
                with self._changed:
                    del self._at_work[name]

    def _is_dismissed(self, me: threading.Thread) -> bool:
        return self._is_stopped or (me in self._threads and len(self._threads) > self._wanted())


_STOP_SECONDS = 10.0
_log = structlog.get_logger()


class RestartPool:
    """Restarts VMs in threads.

    Each thread calls ``ended`` after a restart; ``ended`` must return at once. ``stop`` ends waiting early.
    """

    def __init__(  # noqa: PLR0917 (what it works with, once)
        self,
        config: Config,
        connection: Connection,
        orders: Orders,
        stop: threading.Event,
        ended: Callable[[], None],
        hire: Callable[[Callable[[str], None], int, float], Dispatcher] = Dispatcher,
    ) -> None:
        self._connection = connection
        self._orders = orders
        self._stop = stop
        self._ended = ended
        self._errors: queue.SimpleQueue[BaseException] = queue.SimpleQueue()
        limits = config.rollout
        self._dispatcher = hire(self._restart, limits.concurrency, limits.slot_seconds)

    def use(self, config: Config, store: Store, rollout: Rollout) -> None:
        """Use another configuration. Restarts that are under way continue with the old one."""
        self._order = restart_order(config.vms)
        self._store = store
        self._rollout = rollout
        self._dispatcher.adjust(config.rollout.concurrency, config.rollout.slot_seconds)

    @property
    def order(self) -> list[str]:
        """VM names in restart order."""
        return self._order

    def start(self) -> None:
        """Start the threads."""
        self._dispatcher.start()

    def stop(self) -> None:
        """Begin no more restarts, and wait some seconds for the others. A later run finishes the rest."""
        self._stop.set()
        self._connection.close()
        self._dispatcher.stop(_STOP_SECONDS)

    def ask(self, look: Look) -> None:
        """Queue the VMs that need a rollout or have an order. Does nothing without a systemd connection."""
        if self._connection.present is not None:
            due = {decision.vm.name for decision in look.decisions if decision.needs_work}
            slots = self._rollout.slots
            due |= {name for name in self._orders.pending() if not slots.is_asking(name)}
            self._dispatcher.submit(name for name in self._order if name in due)

    def relieve(self) -> float:
        """See `Dispatcher.relieve`."""
        return self._dispatcher.relieve()

    def raise_error(self) -> None:
        """Raise an error that a thread could not handle, if there is one."""
        with suppress(queue.Empty):
            raise self._errors.get_nowait()

    def _restart(self, name: str) -> None:
        rollout, manager = self._rollout, self._connection.present
        try:
            if manager is not None and not self._stop.is_set() and name in self._order:
                given = self._orders.given(name)
                if given is None:
                    state = rollout.restart(name, manager)
                else:
                    state = self._carry_out(name, given, rollout, manager)
                _log.info("rollout", vm=name, state=state.value)
        except BaseException as error:  # noqa: BLE001 (handed to the loop, which raises it)
            self._dispatcher.forget_waiting()
            self._errors.put(error)
        finally:
            self._ended()

    def _carry_out(self, name: str, given: PendingOrder, rollout: Rollout, manager: SystemManager) -> State:
        """Carry out an operator's order. A later check goes on if it must first seal, or ask the fleet."""

        def stands() -> bool:
            return self._orders.given(name) is given

        try:
            if given.order in {Order.ROTATE, Order.RESTART}:
                way = Way.RESTART if given.order is Order.RESTART else Way.PUSH
                state = rollout.rotate(
                    name, manager, given.moment, given.run, stands, way=way, with_slot=given.with_slot
                )
            else:
                state = rollout.roll_back(name, manager, given.run, stands, with_slot=given.with_slot)
        except OrderError as error:
            self._orders.drop(name, given, describe(error))
            return State.CHANGING
        if state is None:
            return State.SEAL_DUE
        has_failed = state in {State.FAILED, State.WAITING}
        self._orders.complete(name, given, self._why(name) if has_failed else "")
        return state

    def _why(self, name: str) -> str:
        attempt = self._store.attempt(name)
        return attempt.reason if attempt is not None else "its restart failed"
