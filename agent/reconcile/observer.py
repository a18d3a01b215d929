# SPDX-License-Identifier: MIT
"""Reads everything that a decision about a VM needs, each time anew."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from credferry.agent.errors import KeyFileError, SealError, SourceError, StoreError
from credferry.agent.reconcile.decision import Decision, Observed, decide
from credferry.agent.reconcile.desired import Desired, Fingerprints, Identity, Refused, desired
from credferry.agent.reconcile.readiness import (
    Obstructed,
    Passing,
    Ready,
    Spoiled,
    is_asked,
    judge,
    judge_key,
    withheld,
)
from credferry.agent.sealing.keys import CredentialKey, read_key
from credferry.agent.source import snapshot as source
from credferry.agent.store.evidence import Evidence, EvidenceDirectory
from credferry.agent.store.generations import Store
from credferry.agent.store.opening import guest_key_path, present_key
from credferry.agent.store.records import Attempt, Outcome
from credferry.agent.systemd.units import as_left
from credferry.agent.untrusted import read_untrusted
from credferry.launcher.handoff import HandoffError, Kind, Stamp, stamp_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from credferry.agent.config.model import Config, VmConfig
    from credferry.agent.source.snapshot import Snapshot, SourceGeneration
    from credferry.agent.systemd.units import SystemManager, UnitState

_STAMP_SIZE_MAX = 4096
_FILES_LEAST, _ROOM_LEAST = 64, 1 << 20
"""Files and bytes that must be free in the runtime directory before a restart. A start makes some files
there, one of them a copy of the manifest."""


@dataclass(frozen=True, slots=True)
class Look:
    """Result of one check: the source generation that was read, and a decision for each VM."""

    generation: SourceGeneration
    observed: tuple[Observed, ...]
    decisions: tuple[Decision, ...]

    def each(self) -> Iterator[Look]:
        """Split the result into one `Look` per VM."""
        for observed, decision in zip(self.observed, self.decisions, strict=True):
            yield Look(self.generation, (observed,), (decision,))

    @property
    def content(self) -> object:
        """Value to compare: equal exactly if the same is published."""
        return tuple(
            each.desired.digest if isinstance(each.desired, Desired) else each.desired
            for each in self.observed
        )


@dataclass(slots=True)
class _Known:
    """Facts about a VM that the agent computes once, not at each check."""

    secrets: tuple[str, ...]
    stamp_path: Path
    hint: Stamp | None = None
    """The launcher's last report. For each invocation, only the first report counts."""


@dataclass(frozen=True, slots=True)
class Observer:
    """Observes the VMs of one configuration."""

    config: Config
    store: Store
    _identities: dict[str, tuple[bytes, Identity]] = field(default_factory=dict)
    _known: dict[str, _Known] = field(default_factory=dict)
    _spoiled: dict[str, int] = field(default_factory=dict)
    """Generations that could not be opened, by VM. The agent seals such a VM again, but only once."""
    _evidence: EvidenceDirectory = field(init=False)
    _ground: _HostGround = field(init=False)

    def __post_init__(self) -> None:
        """Set up access to the evidence, and to the host files that a start needs."""
        object.__setattr__(self, "_evidence", EvidenceDirectory(Path(self.config.runtime_directory)))
        object.__setattr__(self, "_ground", _HostGround(self.config, self.store))

    def look(self, vms: Iterable[VmConfig], manager: SystemManager | None) -> Look:
        """Observe some VMs. Without a manager this asks systemd nothing and decides no restart.

        Raises `SourceError` if there is no source, and `BusError`.
        """
        vms = list(vms)
        return self.look_at(self.snapshot(vms), vms, manager)

    def look_or_refuse(self, vms: Iterable[VmConfig], manager: SystemManager | None) -> Look:
        """As `look`, but without a source each VM is refused and keeps what it has. Raises `BusError`."""
        vms = list(vms)
        return self.look_at(self.published(vms), vms, manager)

    def published(self, vms: Iterable[VmConfig]) -> Snapshot | Refused:
        """What is published for some VMs. Without a source: a `Refused` with the reason."""
        try:
            return self.snapshot(vms)
        except SourceError as error:
            return without_source(error)

    def look_at(
        self, published: Snapshot | Refused, vms: Iterable[VmConfig], manager: SystemManager | None
    ) -> Look:
        """Observe some VMs with a source snapshot, or with the reason for having none. Raises `BusError`."""
        vms = list(vms)
        fingerprints = Fingerprints(self.store.key, self._identities)
        units = self._units(vms, manager)
        observed = tuple(
            self._observe(vm, published, self._left(vm, units.get(vm.name), manager), fingerprints)
            for vm in vms
        )
        decisions = (self._decided(each, manager) for each in observed)
        generation = source.NOTHING if isinstance(published, Refused) else published.generation
        return Look(generation, observed, tuple(decisions))

    def _decided(self, now: Observed, manager: SystemManager | None) -> Decision:
        decision = decide(now, grace_over=self._is_grace_over(now.unit))
        if manager is None or now.unit is None or not is_asked(decision):
            return decision
        found = judge(now.vm, now.unit, self._ground)
        if isinstance(found, Obstructed):  # its state may be old: ask again
            found = judge(now.vm, manager.unit(now.vm.unit), self._ground)
        number = now.sealed.generation if now.sealed is not None else 0
        if not isinstance(found, Spoiled):
            self._spoiled.pop(now.vm.name, None)
        elif self._spoiled.setdefault(now.vm.name, number) != number:
            found = Obstructed((found.reason,))  # sealing again did not help
        return withheld(decision, now, found)

    def obstacle(self, vm: VmConfig, manager: SystemManager) -> str:
        """Why a VM would not start now; empty if no reason is known.

        The agent calls this right before it asks systemd for a start. Raises `BusError`.
        """
        match judge(vm, manager.unit(vm.unit), self._ground):
            case Ready():
                return ""
            case Obstructed(reasons):
                return "; ".join(reasons)
            case Spoiled(reason):
                return reason
            case Passing():
                return "the host has another key: all is sealed anew first"

    def snapshot(self, vms: Iterable[VmConfig]) -> Snapshot:
        """Read the secrets of some VMs. Raises `SourceError` if there is no source."""
        names = set(chain.from_iterable(self._known_of(vm).secrets for vm in vms))
        follow = self.config.source.follow_links
        return source.take(Path(self.config.source.path), names, follow_links=follow)

    def guest_key(self, vm: VmConfig) -> CredentialKey | None:
        """The master copy of a VM's guest key; None if it has or needs none. Raises `KeyFileError`."""
        if not vm.may_seal or not any(vm.kind(name) is Kind.SEALED for name in vm.credentials):
            return None
        try:
            return read_key(guest_key_path(self.config, vm.name), machine_id=None)
        except FileNotFoundError:
            return None

    def has_failed(self, name: str) -> bool:
        """Whether a VM has an unfinished or failed rollout, and its secrets are still the same.

        A halted rollout does not count. False for a VM that the configuration does not contain. True if
        there is a rollout and no source.
        """
        vm, attempt = self.config.vms.get(name), self.store.attempt(name)
        if vm is None or attempt is None or attempt.outcome is Outcome.HALTED:
            return False
        try:
            published = self._desired(
                vm, self.snapshot([vm]), Fingerprints(self.store.key, self._identities)
            )
        except SourceError:
            return True
        return not isinstance(published, Desired) or published.digest == attempt.digest

    def evidence(self, vm: VmConfig, unit: UnitState) -> Evidence | None:
        """Root's evidence of the start of the unit's present invocation; None if there is none."""
        return self._known_now(vm, self._evidence.of(vm.name, unit.invocation_id))

    def kept_evidence(self, vm: VmConfig) -> Evidence | None:
        """Root's evidence of a VM's only recorded start; None if there is none or more than one."""
        return self._known_now(vm, self._evidence.of(vm.name, self._evidence.invocations().get(vm.name, "")))

    def _known_now(self, vm: VmConfig, evidence: Evidence | None) -> Evidence | None:
        """The evidence with its digest translated to the host's present key, if the store knows it."""
        if evidence is None:
            return None
        digest = self.store.in_present_terms(vm.name, evidence.digest)
        return evidence if digest == evidence.digest else replace(evidence, digest=digest)

    def has_usable_key(self) -> bool:
        """Whether PID 1 takes the host's key, and the agent seals with it. Otherwise PID 1 opens nothing."""
        return isinstance(judge_key(self._ground), Ready)

    def has_other_key(self) -> bool:
        """Whether the host has a key that the agent has yet to take up."""
        return isinstance(judge_key(self._ground), Passing)

    def hint(self, vm: VmConfig, unit: UnitState) -> Stamp | None:
        """The launcher's report of the unit's present invocation; None if there is none.

        Another process of the VM's user can forge it. The agent uses it for two decisions only: when to
        stop waiting for a launch, and whether a new generation fits beside other OEM strings.
        """
        known = self._known_of(vm)
        if known.hint is not None and known.hint.invocation_id == unit.invocation_id:
            return known.hint
        if not unit.invocation_id or not (unit.is_active or unit.is_changing):
            return None
        if noted := self.store.reported(vm.name, unit.invocation_id):
            known.hint = noted
            return noted
        runtime = Path(self.config.runtime_directory)
        try:
            hint = Stamp.from_bytes(read_untrusted(known.stamp_path, limit=_STAMP_SIZE_MAX, below=runtime))
        except (OSError, HandoffError):
            return None
        if hint.vm != vm.name or hint.invocation_id != unit.invocation_id:
            return None
        known.hint = hint
        return hint

    def launched(self, vm: VmConfig, unit: UnitState) -> Evidence | None:
        """Evidence of an invocation, once its launcher has reported or its time to report is over."""
        is_launched = self.hint(vm, unit) is not None or self._is_grace_over(unit)
        return self.evidence(vm, unit) if is_launched else None

    def _is_grace_over(self, unit: UnitState | None) -> bool:
        return unit is None or unit.active_seconds > self.config.rollout.stamp_seconds

    def _known_of(self, vm: VmConfig) -> _Known:
        known = self._known.get(vm.name)
        if known is None:
            names = {each.secret for each in vm.credentials.values() if each.secret is not None}
            path = stamp_path(vm.name, Path(self.config.runtime_directory))
            known = self._known[vm.name] = _Known(tuple(names), path)
        return known

    def _units(self, vms: Iterable[VmConfig], manager: SystemManager | None) -> dict[str, UnitState]:
        """State of each VM's unit, by VM name; empty without a manager."""
        if manager is None:
            return {}
        kept = self._evidence.invocations()
        units = manager.units({vm.unit: kept.get(vm.name, "") for vm in vms})
        return {vm.name: units[vm.unit] for vm in vms}

    def _left(self, vm: VmConfig, unit: UnitState | None, manager: SystemManager | None) -> UnitState | None:
        """A VM's unit, marked if a recorded restart left it down. Raises `BusError`."""
        if manager is None or unit is None or not unit.is_stopped:
            return unit
        attempt = self.store.attempt(vm.name)
        is_noted = attempt is not None and attempt.outcome is not Outcome.HALTED
        return as_left(unit, manager) if is_noted else unit

    def _observe(
        self,
        vm: VmConfig,
        published: Snapshot | Refused,
        unit: UnitState | None,
        fingerprints: Fingerprints,
    ) -> Observed:
        return Observed(
            vm=vm,
            desired=published
            if isinstance(published, Refused)
            else self._desired(vm, published, fingerprints),
            sealed=self.store.current(vm.name),
            unit=unit,
            evidence=self.evidence(vm, unit) if unit is not None else None,
            hint=self.hint(vm, unit) if unit is not None else None,
            assumed=self.store.assumed(vm.name),
            attempt=self._attempt(vm),
            held=self.store.is_held(vm.name),
        )

    def _attempt(self, vm: VmConfig) -> Attempt | None:
        """The record of a VM's last rollout, if any. A halt counts only while its cause lasts."""
        attempt = self.store.attempt(vm.name)
        if attempt is None or attempt.outcome is not Outcome.HALTED or not attempt.halted_for:
            return attempt
        return attempt if self.has_failed(attempt.halted_for) else None

    def _desired(self, vm: VmConfig, published: Snapshot, fingerprints: Fingerprints) -> Desired | Refused:
        try:
            return desired(vm, published, fingerprints, self.guest_key(vm))
        except KeyFileError as error:  # one bad guest key must not stop the check of other VMs
            return Refused((f"{error}: {error.hint}",))


@dataclass(frozen=True, slots=True)
class _HostGround:
    """Implements `readiness.Ground` with the host's key file and the store, as PID 1 will find them."""

    config: Config
    store: Store
    _opened: dict[str, tuple[object, str]] = field(default_factory=dict)
    """By VM: its generation's files at the last try to open them, and the result of that try."""

    def key(self) -> CredentialKey:
        """See `Ground`."""
        try:
            return present_key(self.config)
        except FileNotFoundError:
            raise KeyFileError(
                f"{self.config.host_key}: is not there",
                hint="restore it from a backup; or have another made: systemd-creds setup",
            ) from None

    def is_known(self, key: CredentialKey) -> bool:
        """See `Ground`."""
        return key == self.store.key

    def unopened(self, vm: str, key: CredentialKey) -> str:
        """See `Ground`."""
        place = self.place(vm)
        try:
            with os.scandir(place) as entries:
                files = tuple(sorted((each.name, _written(each.stat())) for each in entries))
        except OSError as error:
            return f"{place}: {error.strerror}"
        last = self._opened.get(vm)
        if last is None or last[0] != files:
            last = self._opened[vm] = files, self._try(vm, key)
        return last[1]

    def _try(self, vm: str, key: CredentialKey) -> str:
        try:
            Store(self.store.state, key).values(vm)
        except (StoreError, SealError, HandoffError) as error:
            return f"{self.place(vm)}: {error}"
        return ""

    def place(self, vm: str) -> str:
        """See `Ground`."""
        return f"{self.store.vm_directory(vm)}/current"

    def lacks_room(self) -> str:
        """See `Ground`. Any user with a directory there can use up the free space."""
        runtime = self.config.runtime_directory
        try:
            found = os.statvfs(runtime)
        except OSError:
            return ""
        # A file system without a fixed number of files reports 0.
        if found.f_files and found.f_favail < _FILES_LEAST:
            return f"{runtime} has no room for more files: see what fills it: du --inodes {runtime}"
        if found.f_bavail * found.f_frsize < _ROOM_LEAST:
            return f"{runtime} is full: see what fills it: du {runtime}"
        return ""


def _written(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_mtime_ns, status.st_ctime_ns


def without_source(error: SourceError) -> Refused:
    """The refusal for each VM while there is no source."""
    return Refused((f"{error}: {error.hint}",))
