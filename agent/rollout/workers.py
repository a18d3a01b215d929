# SPDX-License-Identifier: MIT
"""Runs each restart in a worker thread, for an operator's order or because it is due."""

from __future__ import annotations

import queue
from contextlib import suppress
from typing import TYPE_CHECKING

from credferry.agent.audit.events import Order
from credferry.agent.errors import OrderError, StoreError, UnlistableError, describe
from credferry.agent.messages import Messages
from credferry.agent.reconcile.decision import State
from credferry.agent.rollout.dispatcher import Dispatcher
from credferry.agent.rollout.pacing import restart_order
from credferry.agent.store.failures import StoreFailures
from credferry.agent.store.records import Way

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Container

    from credferry.agent.config.model import Config
    from credferry.agent.reconcile.observer import Look
    from credferry.agent.rollout.orders import Orders, PendingOrder
    from credferry.agent.rollout.rollout import Rollout
    from credferry.agent.store.generations import Store
    from credferry.agent.systemd.connection import Connection
    from credferry.agent.systemd.units import SystemManager


_STOP_SECONDS = 10.0
_log = Messages()


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
        self._unrecorded: set[str] = set()
        """VMs on which the store failed the last work, which is still due."""
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

    def ask(self, look: Look, unsealed: Container[str] = ()) -> None:
        """Queue the VMs that need a rollout or have an order. Does nothing without a systemd connection.

        A restart or push of a VM that this look could not seal waits for the sealing, except for an order.
        A VM with generations of an earlier host key waits: it could not be rolled back.
        """
        if self._connection.present is not None:
            due = {
                each.vm.name
                for each in look.decisions
                if each.needs_work and (each.way is None or each.vm.name not in unsealed)
            } - self._store.of_earlier_key
            slots = self._rollout.slots
            due |= {name for name in self._orders.pending() if not slots.is_asking(name)}
            self._unrecorded.difference_update({each.vm.name for each in look.decisions} - due)
            self._dispatcher.submit(name for name in self._order if name in due)

    @property
    def lacks_store(self) -> bool:
        """Whether the store has failed the last work on a VM, and the next try is still to come."""
        return not self._unrecorded.isdisjoint(self._order)  # a reload may have removed a VM

    def is_ordered(self, name: str) -> bool:
        """Whether an operator's order on a VM is pending. ``ended`` is called after its end."""
        return self._orders.given(name) is not None

    def relieve(self) -> float:
        """See `Dispatcher.relieve`."""
        return self._dispatcher.relieve()

    def raise_error(self) -> None:
        """Raise an error that a thread could not handle, if there is one. One `StoreError` tells of all."""
        failures = StoreFailures()
        with suppress(queue.Empty):
            while True:
                with failures.kept():
                    raise self._errors.get_nowait()
        failures.raise_first()

    def _restart(self, name: str) -> None:
        rollout, manager = self._rollout, self._connection.present
        try:
            if manager is not None and not self._stop.is_set() and name in self._order:
                given = self._orders.given(name)
                if given is not None:
                    state = self._carry_out(name, given, rollout, manager)
                elif name in self._store.of_earlier_key:  # since it was queued
                    state = State.CHANGING
                else:
                    state = rollout.restart(name, manager)
                _log.info("rollout", vm=name, state=state.value)
                self._unrecorded.discard(name)
        except BaseException as error:  # noqa: BLE001 (handed to the loop, which raises it)
            if isinstance(error, StoreError):  # which may be of this VM's directory alone
                self._unrecorded.add(name)
            else:
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
        except (OrderError, UnlistableError) as error:
            self._orders.drop(name, given, describe(error))
            return State.CHANGING
        if state is None:
            return State.SEAL_DUE
        has_failed = state in {State.FAILED, State.WAITING}
        self._orders.complete(name, given, self._why(name, given.order) if has_failed else "")
        return state

    def _why(self, name: str, order: Order) -> str:
        attempt = self._store.attempt(name)
        if attempt is not None:
            return attempt.reason
        if order is Order.ROLL_BACK:
            return "the generation before does not start, so the VM runs again what it ran"
        return "its restart failed"
