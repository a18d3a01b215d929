# SPDX-License-Identifier: MIT
"""Seals a new generation for each VM whose secrets differ from its current generation."""

from __future__ import annotations

import os
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from credferry.agent.audit.events import Event
from credferry.agent.config.model import Policy
from credferry.agent.errors import KeyFileError, SealError, UnlistableError, UnsyncedStoreError, describe
from credferry.agent.messages import Messages
from credferry.agent.reconcile.desired import guest_id
from credferry.agent.reconcile.live import with_push_manifest
from credferry.agent.reconcile.pruning import Pruning
from credferry.agent.sealing.credential import one_line, seal
from credferry.agent.store.failures import StoreFailures
from credferry.agent.store.guest_keys import make_missing
from credferry.agent.store.locks import rollout_lock
from credferry.launcher.handoff import (
    PUSH_MANIFEST,
    Kind,
    Manifest,
    ManifestEntry,
    Secret,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable
    from contextlib import AbstractContextManager

    from credferry.agent.audit.writer import Audit
    from credferry.agent.config.model import VmConfig
    from credferry.agent.reconcile.decision import Decision
    from credferry.agent.reconcile.desired import Desired
    from credferry.agent.reconcile.observed import Observed
    from credferry.agent.reconcile.observer import Look, Observer
    from credferry.agent.sealing.keys import CredentialKey
    from credferry.agent.store.generations import Store

_log = Messages()


def new_run() -> str:
    """A correlation id of 32 hex digits. All journal records of one rotation carry it."""
    return os.urandom(16).hex()


@dataclass(frozen=True, slots=True)
class Sealer:
    """Writes generations."""

    store: Store
    observer: Observer
    audit: Audit
    _told: dict[str, str] = field(default_factory=dict)
    """Digests already recorded as published, by VM. A retry, after a full disk say, does not repeat them."""
    _unmade: dict[str, str] = field(default_factory=dict)
    """Reasons, already logged, why a guest's key cannot be made, by VM."""
    _unsealed: dict[str, str] = field(default_factory=dict)
    """Reasons, already logged, why nothing can be sealed for a VM, by VM."""
    _owed: list[Callable[[], None]] = field(default_factory=list)
    """Audit records of sealed generations that are still to be written. No later check would write them."""
    _pruning: Pruning = field(init=False)

    def __post_init__(self) -> None:
        """Set up what removes older generations."""
        object.__setattr__(self, "_pruning", Pruning(self.store, self.observer.starts))

    def make_guest_keys(self, vms: Iterable[VmConfig]) -> None:
        """Make the keys that guests get from the host, where they are missing. A VM without is refused."""
        for vm in vms:
            try:
                made = make_missing(self.observer.config, vm)
            except KeyFileError as error:
                if self._unmade.get(vm.name) != (reason := describe(error)):
                    _log.error(
                        "cannot make the key of a guest; its VM is refused", vm=vm.name, reason=reason
                    )
                self._unmade[vm.name] = reason
            else:
                self._unmade.pop(vm.name, None)
                if made:
                    _log.info("made the key of a guest, which gets it when its VM starts", vm=vm.name)

    def seal_due(self, look: Look, run: str = "") -> list[str]:
        """Seal each new generation that a check found due; return the names of the VMs sealed.

        Without ``run``, this makes a new correlation id. A VM whose values cannot be sealed now keeps its
        current generation, and the next check reports what is missing. A change that needs an approval is
        not sealed during the VM's restart. Raises a VM's `StoreError` once the others are sealed.
        """
        run = run or new_run()
        sealed, failures = [], StoreFailures()
        with self.store.lock():
            self._pay()
            for decision, observed in zip(look.decisions, look.observed, strict=True):
                with failures.kept():
                    if self._keep_up(decision, observed, run):
                        sealed.append(decision.vm.name)
        failures.raise_first()
        return sealed

    def _keep_up(self, decision: Decision, observed: Observed, run: str) -> bool:
        """Note what is known of a VM now, and seal what is due for it. Whether that is sealed."""
        if decision.assume is not None:
            self.store.assume(decision.vm.name, decision.assume)
        if observed.hint is not None:
            self.store.note_report(decision.vm.name, observed.hint)
        self._pruning.note_worked(observed)
        if decision.seal is None:
            self._unsealed.pop(decision.vm.name, None)
            return False
        with self._not_during_its_restart(decision.vm) as may_seal:
            return may_seal and self._is_sealed(decision.vm, decision.seal, observed, run)

    def prune(self, look: Look) -> None:
        """Note what VMs run well, and remove the generations that nobody needs. Raises `StoreError`."""
        self._pruning.prune(look.observed)

    def _not_during_its_restart(self, vm: VmConfig) -> AbstractContextManager[bool]:
        """Whether a generation of the VM may become current now. A later check seals what may not."""
        if vm.policy is not Policy.APPROVE:
            return nullcontext(enter_result=True)  # a restart takes the newest values along
        return self.store.lock(rollout_lock(vm.name), wait=False)

    def _is_sealed(self, vm: VmConfig, wanted: Desired, observed: Observed, run: str) -> bool:
        """Seal a VM's values, unless they are sealed. Logs why, and returns False, if that fails.

        False too where generations must be removed first, which the VM's restart in progress may need.
        """
        if not self._is_sealed_since(observed, wanted):
            try:
                if self._pruning.is_owed(observed):
                    return False
                self._seal(observed, wanted, run)
            except (SealError, KeyFileError, UnlistableError) as error:
                if self._unsealed.get(vm.name) != (reason := describe(error)):
                    _log.error("cannot seal for a VM", vm=vm.name, reason=reason)
                self._unsealed[vm.name] = reason
                return False
        self._unsealed.pop(vm.name, None)
        return True

    def _is_sealed_since(self, observed: Observed, wanted: Desired) -> bool:
        """Whether another process sealed the same after this one looked, and before it had the lock."""
        now = self.store.current(observed.vm.name)
        before = observed.sealed.generation if observed.sealed else 0
        if now is None or now.generation <= before:
            return False
        return (now.digest, now.delivery) == (wanted.digest, wanted.delivery)

    def _seal(self, observed: Observed, wanted: Desired, run: str) -> None:
        vm = observed.vm
        before = self.store.current(vm.name)
        changed = _changed(before, wanted.entries)
        guest = self.observer.guest_key(vm)
        if guest_id(guest) != wanted.guest:
            raise KeyFileError(
                f"the guest key of VM {vm.name} was {'removed' if guest is None else 'replaced'} "
                "during a check",
                hint="the agent checks again, with the key that exists then",
            )
        values = {entry.name: _as_kind(entry, wanted.values[entry.name], guest) for entry in wanted.entries}
        manifest = Manifest(
            key=os.urandom(32).hex(),
            vm=vm.name,
            generation=self.store.next_number(vm.name),
            digest=wanted.digest,
            run=run,
            delivery=wanted.delivery,
            credentials=wanted.entries,
        )
        if vm.live:
            manifest, values[PUSH_MANIFEST] = with_push_manifest(manifest, wanted.values, guest)
        if self._told.get(vm.name) != wanted.digest:
            names = ", ".join(changed) or "the delivery settings"
            self.audit.record(
                Event.PUBLISHED,
                f"{vm.name}: a change is published: {names}",
                run=run,
                vm=vm.name,
                unit=vm.unit,
                fingerprints=changed,
            )
            self._told[vm.name] = wanted.digest
        self.store.note_ages(vm.name, self._ages(vm, before, wanted, changed))
        unsynced: UnsyncedStoreError | None = None
        try:
            self.store.write(manifest, values, None)
        except UnsyncedStoreError as error:  # it is sealed all the same: the next check finds it
            unsynced = error
        self._told.pop(vm.name, None)
        self._pruning.note_sealed(vm.name)
        self._owed.append(
            partial(
                self.audit.record,
                Event.SEALED,
                f"{vm.name}: generation {manifest.generation} is sealed",
                run=run,
                vm=vm.name,
                unit=vm.unit,
                generation=manifest.generation,
                fingerprints={entry.name: entry.fingerprint for entry in wanted.entries},
            )
        )
        self._pay()
        if unsynced is not None:
            raise unsynced

    def _ages(
        self, vm: VmConfig, before: Manifest | None, wanted: Desired, changed: Container[str]
    ) -> dict[str, float]:
        """Since when each value has been what it is: what has changed, since now."""
        now, noted = time.time(), self.store.ages(vm.name)
        former = (self.store.sealed_at(before) if before is not None else None) or now
        return {
            each.name: now if each.name in changed else noted.get(each.name, former)
            for each in wanted.entries
        }

    def _pay(self) -> None:
        """Write the outstanding records. Raises `StoreError`; unwritten records then remain outstanding."""
        while self._owed:
            self._owed[0]()
            del self._owed[0]


def _as_kind(entry: ManifestEntry, value: Secret, guest: CredentialKey | None) -> Secret:
    """The value in the form that its entry requires. Raises `SealError` if it cannot be sealed."""
    match entry.kind:
        case Kind.PLAIN | Kind.TEXT:
            return value
        case Kind.SEALED:
            if guest is None:
                raise SealError(
                    f"cannot seal credential {entry.name} for the guest: there is no guest key",
                    hint="make one: credferry guest-key create",
                )
            return Secret(one_line(seal(value.reveal(), name=entry.name, key=guest)))


def _changed(before: Manifest | None, entries: Iterable[ManifestEntry]) -> dict[str, str]:
    """Fingerprints of the credentials that differ from those of a manifest, by name."""
    known = {(entry.name, entry.fingerprint) for entry in (before.credentials if before else ())}
    return {each.name: each.fingerprint for each in entries if (each.name, each.fingerprint) not in known}
