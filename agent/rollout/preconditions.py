# SPDX-License-Identifier: MIT
"""Checks whether an operator's order can be carried out: when it is given, and again before it is done."""

from __future__ import annotations

from typing import TYPE_CHECKING

from credferry.agent.errors import OrderError, UnlistableError
from credferry.agent.reconcile.desired import Desired
from credferry.agent.store.records import Attempt, Outcome

if TYPE_CHECKING:
    from credferry.agent.reconcile.observed import Observed
    from credferry.agent.store.generations import Store
    from credferry.launcher.handoff import Manifest


def to_rotate(store: Store, observed: Observed) -> Manifest:
    """The generation to restart a running VM onto. Raises `OrderError`."""
    vm, unit = observed.vm, observed.unit
    manifest = _sealed(store, observed)
    if (attempt := _set_back(observed, manifest)) is not None:
        raise OrderError(
            "RolledBack",
            f"{vm.name}: {attempt.reason}",
            hint=f"retry it with: credferry retry {vm.name}",
        )
    if unit is None or not unit.is_active:
        raise OrderError(
            "NotRunning",
            f"{vm.name}: {vm.unit} does not run; its next start gets what is sealed",
            hint=f"start it with: systemctl start {vm.unit}",
        )
    return manifest


def to_roll_back(store: Store, observed: Observed) -> tuple[Manifest, Manifest]:
    """The current generation, and the one to roll back to. Raises `OrderError`."""
    manifest = _sealed(store, observed)
    try:
        previous = store.previous(observed.vm.name)
    except UnlistableError as error:
        raise OrderError("NothingBefore", f"{observed.vm.name}: {error}", hint=error.hint) from None
    if previous is None:
        raise OrderError(
            "NothingBefore",
            f"{observed.vm.name}: no kept generation before {manifest.generation} has other values",
            hint="publish the earlier values again",
        )
    if not store.opens(observed.vm.name, previous.generation):
        raise OrderError(
            "NothingBefore",
            f"{observed.vm.name}: generation {previous.generation}, the one before, cannot be opened: "
            "its files are damaged, or the host's TPM does not open them now",
            hint="publish the earlier values again",
        )
    return manifest, previous


def _sealed(store: Store, observed: Observed) -> Manifest:
    vm = observed.vm
    if observed.held:
        raise OrderError(
            "Held", f"{vm.name}: is held", hint=f"release it first: credferry release {vm.name}"
        )
    manifest = store.current(vm.name)
    if manifest is None:
        raise OrderError(
            "NothingSealed", f"{vm.name}: nothing is sealed for it", hint="see: credferry status"
        )
    return manifest


def _set_back(observed: Observed, manifest: Manifest) -> Attempt | None:
    """The failed rollout because of which a VM is not on the published secrets; None if there is none."""
    attempt, desired = observed.attempt, observed.desired
    if attempt is None or attempt.digest == manifest.digest:
        return None
    is_of_now = not isinstance(desired, Desired) or desired.digest == attempt.digest
    return attempt if is_of_now and attempt.outcome in {Outcome.FAILED, Outcome.ROLLED_BACK} else None
