# SPDX-License-Identifier: MIT
"""Operators' orders on VMs, which any thread may give while the agent runs.

The loop's thread carries out no order itself. An order that takes long is queued. A hint makes the loop
check, and the loop hands the order to the threads that restart VMs.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from credferry.agent.audit.events import Event, Order
from credferry.agent.errors import (
    BusError,
    OrderError,
    StoreError,
    describe,
)
from credferry.agent.messages import Messages
from credferry.agent.rollout import preconditions
from credferry.agent.rollout.holding import approve, hold, is_halted, retry
from credferry.agent.rollout.operators import Operator, record
from credferry.agent.rollout.requests import LoopRequest, SharedWork

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from credferry.agent.config.model import Config, VmConfig
    from credferry.agent.reconcile.observer import Look
    from credferry.agent.rollout.session import Session
    from credferry.agent.systemd.units import SystemManager

_log = Messages()
_REQUEST_SECONDS = 20.0
_RETRY_SECONDS = 15.0
_GONE = "the configuration no longer has this VM"
_PERMITS = {
    Order.ROTATE: preconditions.to_rotate,
    Order.RESTART: preconditions.to_rotate,
    Order.ROLL_BACK: preconditions.to_roll_back,
}
"""By order that needs a restart: the function that refuses it at once. The restart itself checks again."""
_ASK_AGAIN_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class PendingOrder:
    """An order that needs a restart, the monotonic time at which it was given, and its run."""

    order: Order
    moment: float
    run: str
    with_slot: bool = True
    """Whether it needs a slot of the VM's fleet, where there is a fleet."""


def _no_manager() -> None:
    """Stands in for the systemd connection until a configuration is in force."""


class Orders:
    """Takes operators' orders. ``hint`` makes the loop check, and returns at once."""

    def __init__(self, hint: Callable[[str], None], monotonic: Callable[[], float] = time.monotonic) -> None:
        self._hint = hint
        self._monotonic = monotonic
        self._changed = threading.Condition()
        self._pending: dict[str, PendingOrder] = {}
        self._results: dict[str, str] = {}
        self.check = LoopRequest(lambda: hint("sync"), "check", _REQUEST_SECONDS)
        """Ask for a check of all VMs now. Its error is that of the source, the bus or the store."""
        self.reload = LoopRequest(lambda: hint("reload"), "reload", _REQUEST_SECONDS)
        """Ask for a new read of the configuration. Its error is that of the file."""
        self._planning: SharedWork[Look] = SharedWork()
        self._giving = threading.Lock()
        self._session: Session | None = None
        self._manager: Callable[[], SystemManager | None] = _no_manager

    # The loop's side.

    def use(self, session: Session, manager: Callable[[], SystemManager | None]) -> None:
        """Use another configuration, and drop orders on VMs that it does not contain."""
        with self._changed:
            self._session, self._manager = session, manager
            gone = (self._pending.keys() | self._results.keys()) - session.config.vms.keys()
            dropped = {name: given for name in sorted(gone) if (given := self._pending.pop(name, None))}
            for name in gone:
                self._results.pop(name, None)
        self._tell_dropped(dropped, _GONE)

    def abandon(self) -> None:
        """Drop all pending orders, because the agent stops."""
        with self._changed:
            dropped, self._pending = self._pending, {}
        self._tell_dropped(dropped, "the agent stops")

    def pending(self) -> set[str]:
        """Names of the VMs with a pending order."""
        with self._changed:
            return set(self._pending)

    def given(self, name: str) -> PendingOrder | None:
        """The pending order on a VM; None if there is none."""
        with self._changed:
            return self._pending.get(name)

    def complete(self, name: str, given: PendingOrder, result: str) -> None:
        """Take note of how an order ended. ``result`` is empty for success, else the reason."""
        with self._changed:
            if self._pending.get(name) is not given:
                return
            del self._pending[name]
            self._results[name] = result

    def drop(self, name: str, given: PendingOrder, reason: str) -> None:
        """Take note that an order could not be carried out, and record it in the audit."""
        self.complete(name, given, reason)
        self._tell_dropped({name: given}, reason)

    def result(self, name: str) -> str:
        """Why the last order on a VM failed; empty if it did not fail."""
        with self._changed:
            return self._results.get(name, "")

    # The operators' side.

    def plan(self) -> Look:
        """Check all VMs in the caller's thread and change nothing. Callers that wait share one check.

        Raises `OrderError`, `SourceError`, `BusError`.
        """
        return self._planning.do(self._look)

    def _look(self) -> Look:
        session = self._at_work()
        manager = self._manager()
        if manager is None:
            raise BusError("the agent has no connection to systemd", hint="the agent retries every 5 s")
        return session.pacer.hold_back(session.observer.look(session.config.vms.values(), manager))

    def give(
        self, name: str, order: Order, operator: Operator, change: str = "", *, with_slot: bool = True
    ) -> str:
        """Record an order, carry it out or queue it, and return its run.

        ``change`` is the run that an approval is of; empty for whatever is sealed. Without ``with_slot``, a
        restart, push or rollback does not ask the fleet.

        Raises `OrderError`, `ConfigurationError`, `BusError`, `StoreError`: the order is then not given.
        """
        session = self._at_work()
        vm = session.config.vm(name)
        match order:
            case Order.ROTATE | Order.RESTART | Order.ROLL_BACK:
                run = self._restart_soon(session, vm, order, operator, with_slot=with_slot)
            case Order.HOLD | Order.RELEASE:
                run = hold(session.store, session.audit, vm, operator, held=order is Order.HOLD)
                if order is Order.RELEASE and is_halted(session.store, vm):
                    self._retry(session, vm, PendingOrder(order, self._monotonic(), run))
            case Order.APPROVE:
                run = approve(session.store, session.audit, vm, operator, change)
            case Order.RETRY:
                run = record(session.audit, order, vm, operator)
                self._retry(session, vm, PendingOrder(order, self._monotonic(), run))
        self._hint("order")
        return run

    def _restart_soon(
        self, session: Session, vm: VmConfig, order: Order, operator: Operator, *, with_slot: bool
    ) -> str:
        manager = self._manager()
        if manager is not None:
            observed = session.observer.look_or_refuse([vm], manager).observed[0]
            _PERMITS[order](session.store, observed)
        with self._giving:  # one order at a time: each is recorded before it has any effect
            if self.given(vm.name) is not None:
                raise OrderError(
                    "Busy",
                    f"{vm.name}: an earlier order is still being carried out",
                    hint="try again when that is done",
                )
            run = record(session.audit, order, vm, operator, with_slot=with_slot)
            given = PendingOrder(order, self._monotonic(), run, with_slot)
            with self._changed:
                is_gone = vm.name not in self.config.vms  # a reload has just removed it
                if not is_gone:
                    self._pending[vm.name] = given
                    self._results.pop(vm.name, None)
        if is_gone:
            self._tell_dropped({vm.name: given}, _GONE)
            raise OrderError("UnknownVm", f"{vm.name}: {_GONE}", hint="see: credferry status")
        return run

    def _retry(self, session: Session, vm: VmConfig, given: PendingOrder) -> None:
        """Make a failed rollout due again. Wait up to ``_RETRY_SECONDS`` while the VM is being restarted."""
        deadline = self._monotonic() + _RETRY_SECONDS
        while True:
            try:
                retry(session.store, vm, given.run)
            except OrderError as error:
                if self._monotonic() >= deadline:
                    self._tell_dropped({vm.name: given}, str(error))
                    raise
                time.sleep(_ASK_AGAIN_SECONDS)
            else:
                return

    def _tell_dropped(self, dropped: Mapping[str, PendingOrder], reason: str) -> None:
        if self._session is None:
            return
        for name, given in dropped.items():
            message = f"{name}: {given.order.value} is dropped: {reason}"
            order = {"CREDFERRY_ORDER": given.order.value}
            try:
                self._session.audit.record(Event.ORDER_DROPPED, message, run=given.run, vm=name, extra=order)
            except StoreError as error:  # a full disk must not end a reload
                _log.error(message, not_in_the_audit=describe(error))

    @property
    def config(self) -> Config:
        """The configuration in force. Raises `OrderError`."""
        return self._at_work().config

    def _at_work(self) -> Session:
        if self._session is None:
            raise OrderError("Busy", "the agent is starting", hint="try again in a moment")
        return self._session
