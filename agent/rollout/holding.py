# SPDX-License-Identifier: MIT
"""What an order writes to the store at once: that a VM is held, or that a failed rollout is tried again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from credferry.agent.audit.events import Event, Order
from credferry.agent.config.model import Policy
from credferry.agent.errors import OrderError, UnsyncedStoreError
from credferry.agent.rollout.operators import Operator, record
from credferry.agent.store.locks import rollout_lock
from credferry.agent.store.records import Outcome

if TYPE_CHECKING:
    from credferry.agent.audit.writer import Audit
    from credferry.agent.config.model import VmConfig
    from credferry.agent.store.generations import Store


def hold(store: Store, audit: Audit, vm: VmConfig, operator: Operator, *, held: bool) -> str:
    """Record the order to hold or release a VM, carry it out, return its run. Raises `StoreError`."""
    run = record(audit, Order.HOLD if held else Order.RELEASE, vm, operator)
    if store.is_held(vm.name) is not held:
        unsynced: UnsyncedStoreError | None = None
        try:
            store.hold(vm.name, held=held)
        except UnsyncedStoreError as error:  # it took effect all the same, so record it
            unsynced = error
        event = Event.HELD if held else Event.RELEASED
        audit.record(event, f"{vm.name}: {event.label}", run=run, vm=vm.name, unit=vm.unit)
        if unsynced is not None:
            raise unsynced
    return run


def approve(store: Store, audit: Audit, vm: VmConfig, operator: Operator, change: str) -> str:
    """Record an operator's approval of what is sealed for a VM, carry it out, return its run.

    With ``change``, what is sealed must be of the run that begins so. Raises `OrderError`, `StoreError`.
    """
    if vm.policy is not Policy.APPROVE:
        raise OrderError(
            "NotNeeded",
            f'{vm.name}: needs no approval, because its policy is "{vm.policy.value}"',
            hint=f'for changes to wait for approval: policy = "approve" in [vms.{vm.name}]',
        )
    with store.lock():  # nothing else is sealed between the look and the record
        manifest = store.current(vm.name)
        if manifest is None or not manifest.run.startswith(change):
            said = (
                "nothing is sealed for it" if manifest is None else f"what is sealed is not of run {change}"
            )
            raise OrderError("NothingSealed", f"{vm.name}: {said}", hint="see: credferry status")
        run = record(audit, Order.APPROVE, vm, operator, manifest)
        store.approve(vm.name, manifest.digest)
    return run


def is_halted(store: Store, vm: VmConfig) -> bool:
    """Whether a VM's restart was halted because another VM's restart failed."""
    attempt = store.attempt(vm.name)
    return attempt is not None and attempt.outcome is Outcome.HALTED


def retry(store: Store, vm: VmConfig, run: str) -> None:
    """Make the next check try a VM's failed rollout again.

    The audit records of the new try are under ``run``, the run of the operator's order.

    Raises `StoreError`, and `OrderError` if the VM is being restarted.
    """
    with store.lock(rollout_lock(vm.name), wait=False) as had:  # a restart in progress records its end first
        if not had:
            raise OrderError("Busy", f"{vm.name}: it is being restarted", hint="try again when that is done")
        attempt = store.attempt(vm.name)
        if attempt is not None:
            again = msgspec.structs.replace(
                attempt, outcome=Outcome.RETRY, reason="", by_operator=False, order=run
            )
            store.record_attempt(vm.name, again)
