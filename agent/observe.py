# SPDX-License-Identifier: MIT
"""Looking: everything that a decision about a VM needs, read afresh each time."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from agent import source
from agent.desired import Desired, Fingerprints, Identity, Refused, desired
from agent.errors import KeyFileError, SourceError
from agent.keys import CredentialKey, host_key, read_key, read_machine_id
from agent.notes import Attempt, Outcome
from agent.reconcile import Decision, Observed, decide
from agent.store import Store
from launcher.handoff import HandoffError, Kind, Stamp, stamp_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from agent.config import Config, VmConfig
    from agent.source import Generation, Snapshot
    from agent.units import SystemManager, UnitState

_STAMP_SIZE_MAX = 4096


@dataclass(frozen=True, slots=True)
class Look:
    """What one look found: the generation of the source that was read, and a decision for each VM."""

    generation: Generation
    observed: tuple[Observed, ...]
    decisions: tuple[Decision, ...]

    def each(self) -> Iterator[Look]:
        """The same of one VM after the other."""
        for observed, decision in zip(self.observed, self.decisions, strict=True):
            yield Look(self.generation, (observed,), (decision,))

    @property
    def content(self) -> object:
        """Compares equal exactly when the same is published."""
        return tuple(
            each.desired.digest if isinstance(each.desired, Desired) else each.desired
            for each in self.observed
        )


@dataclass(slots=True)
class _Known:
    """What is made out of a VM once, and not at each look."""

    secrets: tuple[str, ...]
    stamp_path: str
    stamp: tuple[bytes, Stamp] | None = None
    """What was read last, and what it says."""


@dataclass(frozen=True, slots=True)
class Observer:
    """Looks at VMs of one configuration."""

    config: Config
    store: Store
    _identities: dict[str, tuple[bytes, Identity]] = field(default_factory=dict)
    _known: dict[str, _Known] = field(default_factory=dict)

    def look(self, vms: Iterable[VmConfig], manager: SystemManager | None) -> Look:
        """Look at some VMs; without a manager, systemd is not asked and no restart is decided.

        Raises `SourceError` where there is no source, and `BusError`.
        """
        vms = list(vms)
        return self.look_at(self.snapshot(vms), vms, manager)

    def look_or_refuse(self, vms: Iterable[VmConfig], manager: SystemManager | None) -> Look:
        """The same where there may be no source: each VM is then refused, and keeps what it had."""
        vms = list(vms)
        return self.look_at(self.published(vms), vms, manager)

    def published(self, vms: Iterable[VmConfig]) -> Snapshot | Refused:
        """What is published for some VMs; where there is no source, why there is nothing."""
        try:
            return self.snapshot(vms)
        except SourceError as error:
            return without_source(error)

    def look_at(
        self, published: Snapshot | Refused, vms: Iterable[VmConfig], manager: SystemManager | None
    ) -> Look:
        """Look at some VMs, with what was read of the source, or why nothing was. Raises `BusError`."""
        vms = list(vms)
        fingerprints = Fingerprints(self.store.key, self._identities)
        running = self._running(vms, manager)
        observed = tuple(self._observe(vm, published, running.get(vm.name), fingerprints) for vm in vms)
        grace = self.config.rollout.stamp_seconds
        decisions = (
            decide(each, grace_over=each.unit is None or each.unit.active_seconds > grace)
            for each in observed
        )
        generation = source.NOTHING if isinstance(published, Refused) else published.generation
        return Look(generation, observed, tuple(decisions))

    def snapshot(self, vms: Iterable[VmConfig]) -> Snapshot:
        """Read the secrets of some VMs. Raises `SourceError` where there is no source."""
        names = set(chain.from_iterable(self._known_of(vm).secrets for vm in vms))
        follow = self.config.source.follow_links
        return source.take(Path(self.config.source.path), names, follow_links=follow)

    def guest_key(self, vm: VmConfig) -> CredentialKey | None:
        """The master copy of a VM's guest key; None when there is none. Raises `KeyFileError`."""
        if not vm.may_seal or not any(vm.kind(name) is Kind.SEALED for name in vm.credentials):
            return None
        try:
            return read_key(guest_key_path(self.config, vm.name), machine_id=None)
        except FileNotFoundError:
            return None

    def has_failed(self, name: str) -> bool:
        """Whether a VM's last rollout failed, or is being tried again, and its secrets are still the same.

        False for a VM that the configuration does not have.
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

    def stamp(self, vm: VmConfig, unit: UnitState) -> Stamp | None:
        """The stamp of the unit's present invocation; any other counts as none."""
        stamp = self._any_stamp(vm)
        return stamp if stamp is not None and stamp.invocation_id == unit.invocation_id else None

    def _any_stamp(self, vm: VmConfig) -> Stamp | None:
        known = self._known_of(vm)
        try:
            with open(known.stamp_path, "rb", buffering=0) as file:  # noqa: PTH123 (done for each VM at each look)
                content = file.read(_STAMP_SIZE_MAX)
            last = known.stamp  # once: another thread may look at the same VM
            if last is None or last[0] != content:
                last = known.stamp = content, Stamp.from_bytes(content)
        except (OSError, HandoffError):
            return None
        return last[1] if last[1].vm == vm.name else None

    def _known_of(self, vm: VmConfig) -> _Known:
        known = self._known.get(vm.name)
        if known is None:
            names = {each.secret for each in vm.credentials.values() if each.secret is not None}
            path = stamp_path(vm.name, Path(self.config.runtime_directory))
            known = self._known[vm.name] = _Known(tuple(names), str(path))
        return known

    def _running(
        self, vms: Iterable[VmConfig], manager: SystemManager | None
    ) -> dict[str, tuple[UnitState, Stamp | None]]:
        """Each VM's unit and the stamp of its present invocation; nothing without a manager."""
        if manager is None:
            return {}
        stamps = {vm.unit: self._any_stamp(vm) for vm in vms}
        units = manager.units({unit: stamp.invocation_id if stamp else "" for unit, stamp in stamps.items()})
        found = {}
        for vm in vms:
            unit, stamp = units[vm.unit], stamps[vm.unit]
            if stamp is None or stamp.invocation_id != unit.invocation_id:
                # It may have been left meanwhile. A stamp of a still later invocation counts as none, and
                # the next look finds it.
                stamp = self.stamp(vm, unit)
            found[vm.name] = unit, stamp
        return found

    def _observe(
        self,
        vm: VmConfig,
        published: Snapshot | Refused,
        running: tuple[UnitState, Stamp | None] | None,
        fingerprints: Fingerprints,
    ) -> Observed:
        unit, stamp = running or (None, None)
        return Observed(
            vm=vm,
            desired=published
            if isinstance(published, Refused)
            else self._desired(vm, published, fingerprints),
            sealed=self.store.current(vm.name),
            unit=unit,
            stamp=stamp,
            assumed=self.store.assumed(vm.name),
            attempt=self._attempt(vm),
            held=self.store.is_held(vm.name),
        )

    def _attempt(self, vm: VmConfig) -> Attempt | None:
        """A VM's last rollout, if it did not end well. A halt counts as long as its cause does."""
        attempt = self.store.attempt(vm.name)
        if attempt is None or attempt.outcome is not Outcome.HALTED or not attempt.halted_for:
            return attempt
        return attempt if self.has_failed(attempt.halted_for) else None

    def _desired(self, vm: VmConfig, published: Snapshot, fingerprints: Fingerprints) -> Desired | Refused:
        try:
            return desired(vm, published, fingerprints, self.guest_key(vm))
        except KeyFileError as error:  # one guest's key is no reason to look at no other VM
            return Refused((f"{error}: {error.hint}",))


def without_source(error: SourceError) -> Refused:
    """What is published where there is no source."""
    return Refused((f"{error}: {error.hint}",))


def open_store(config: Config) -> Store:
    """The store of a configuration, with the host's key, made where there is none. Raises `KeyFileError`."""
    key = host_key(Path(config.host_key), machine_id_file=Path(config.machine_id_file))
    return Store(Path(config.state_directory), key)


def open_store_untouched(config: Config) -> Store:
    """The same for verbs that change nothing. Raises `KeyFileError`.

    Where there is no host key yet, nothing can have been sealed with it: a passing one stands in.
    """
    try:
        key = present_key(config)
    except FileNotFoundError:
        key = CredentialKey(os.urandom(32))
    return Store(Path(config.state_directory), key)


def present_key(config: Config) -> CredentialKey:
    """The host's key as it is now. Raises `KeyFileError`, and `FileNotFoundError` where there is none."""
    machine_id = read_machine_id(Path(config.machine_id_file))
    return read_key(Path(config.host_key), machine_id=machine_id)


def guest_key_path(config: Config, vm: str) -> Path:
    """Where the master copy of a guest's key is."""
    return Path(config.state_directory) / "guest-keys" / f"{vm}.secret"
