# SPDX-License-Identifier: MIT
"""Reads everything that a decision about a VM needs, each time anew.

One job: a look, from what is published and what systemd says to a decision for each VM.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from credferry.agent.config.model import Policy
from credferry.agent.errors import KeyFileError, describe
from credferry.agent.reconcile.decision import Decision, decide
from credferry.agent.reconcile.desired import Desired, Fingerprints, Identity, Refused, desired
from credferry.agent.reconcile.ground import HostGround
from credferry.agent.reconcile.observed import Observed
from credferry.agent.reconcile.readiness import (
    Obstructed,
    Passing,
    Ready,
    Spoiled,
    is_asked,
    judge,
    judge_key,
    obstacle,
    unsealable,
    withheld,
)
from credferry.agent.reconcile.starts import Starts
from credferry.agent.sealing.keys import CredentialKey, read_key
from credferry.agent.source import published as source
from credferry.agent.store.opening import guest_key_path
from credferry.agent.store.records import Attempt, Outcome, Way
from credferry.agent.systemd.units import as_left
from credferry.launcher.handoff import Kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from credferry.agent.config.model import Config, VmConfig
    from credferry.agent.source.published import Publication
    from credferry.agent.store.generations import Store
    from credferry.agent.systemd.units import SystemManager, UnitState


@dataclass(frozen=True, slots=True)
class Look:
    """Result of one check: what was published, and a decision for each VM."""

    published: Publication
    observed: tuple[Observed, ...]
    decisions: tuple[Decision, ...]

    def each(self) -> Iterator[Look]:
        """Split the result into one `Look` per VM."""
        for observed, decision in zip(self.observed, self.decisions, strict=True):
            yield Look(self.published, (observed,), (decision,))


@dataclass(frozen=True, slots=True)
class Observer:
    """Observes the VMs of one configuration."""

    config: Config
    store: Store
    _identities: dict[str, tuple[bytes, Identity]] = field(default_factory=dict)
    _spoiled: dict[str, int] = field(default_factory=dict)
    """Generations that could not be opened, by VM. The agent seals such a VM again, but only once."""
    starts: Starts = field(init=False)
    _every: dict[str, list[str]] = field(init=False)
    """Names of all VMs' secrets, by source, in order."""
    _ground: HostGround = field(init=False)

    def __post_init__(self) -> None:
        """Set up access to the VMs' starts, and to the host files that a start needs."""
        every = {name: sorted(secrets) for name, secrets in self.config.secrets.items()}
        object.__setattr__(self, "_every", every)
        object.__setattr__(self, "starts", Starts(self.config, self.store))
        object.__setattr__(self, "_ground", HostGround(self.config, self.store))

    def look(self, vms: Iterable[VmConfig], manager: SystemManager | None) -> Look:
        """Observe some VMs. Without a manager this asks systemd nothing and decides no restart.

        Raises `SourceError` if no source of these VMs can be read, and `BusError`.
        """
        vms = list(vms)
        published = self.published(vms)
        if published.failure is not None:
            raise published.failure
        return self.look_at(published, vms, manager)

    def look_or_refuse(self, vms: Iterable[VmConfig], manager: SystemManager | None) -> Look:
        """As `look`, but a VM without its source is refused and keeps what it has. Raises `BusError`."""
        vms = list(vms)
        return self.look_at(self.published(vms), vms, manager)

    def look_in_full(self, vm: VmConfig, manager: SystemManager) -> Look:
        """As `look_or_refuse`, right before a restart: systemd is asked for all that a start depends on."""
        return self._look(self.published([vm]), [vm], manager, {vm.name: manager.unit(vm.unit)})

    def published(self, vms: Iterable[VmConfig]) -> Publication:
        """What is published for some VMs, in each source that they use."""
        vms = tuple(vms)
        if vms == tuple(self.config.vms.values()):
            return source.read(self.config, self._every)
        wanted: dict[str, set[str]] = {}
        for vm in vms:
            for name, secrets in vm.secrets.items():
                wanted.setdefault(name, set()).update(secrets)
        return source.read(self.config, wanted)

    def look_at(
        self,
        published: Publication | Refused,
        vms: Iterable[VmConfig],
        manager: SystemManager | None,
    ) -> Look:
        """As `look_or_refuse`, with what is published, or with a reason to refuse all."""
        vms = list(vms)
        return self._look(published, vms, manager, {} if manager is None else self._units(vms, manager))

    def _look(
        self,
        published: Publication | Refused,
        vms: Sequence[VmConfig],
        manager: SystemManager | None,
        units: Mapping[str, UnitState],
    ) -> Look:
        """A look with what is published, and with what systemd says of the VMs' units."""
        fingerprints = Fingerprints(self.store.key, self._identities)
        observed = tuple(
            self._observe(vm, published, self._left(vm, units.get(vm.name), manager), fingerprints)
            for vm in vms
        )
        decisions = (self._decided(each, manager) for each in observed)
        seen = source.NOTHING if isinstance(published, Refused) else published
        return Look(seen, observed, tuple(decisions))

    def _decided(self, now: Observed, manager: SystemManager | None) -> Decision:
        decision = decide(now, grace_over=self.starts.is_grace_over(now.unit))
        obstacle = self.store.sealing.obstacle
        if decision.seal is not None and obstacle is not None:
            return unsealable(decision, describe(obstacle))
        if manager is None or now.unit is None or not is_asked(decision):
            return decision
        way, is_final = decision.way or Way.RESTART, decision.seal is None
        found = judge(now.vm, now.unit, self._ground, way, is_final=is_final)
        if isinstance(found, Obstructed):  # its state may be old: ask again
            found = judge(now.vm, manager.unit(now.vm.unit), self._ground, way, is_final=is_final)
        number = now.sealed.generation if now.sealed is not None else 0
        if not isinstance(found, Spoiled):
            self._spoiled.pop(now.vm.name, None)
        elif self._spoiled.setdefault(now.vm.name, number) != number:
            found = Obstructed((found.reason,))  # sealing again did not help
        return withheld(decision, now, found)

    def obstacle(
        self,
        vm: VmConfig,
        manager: SystemManager,
        way: Way = Way.RESTART,
        unit: UnitState | None = None,
    ) -> str:
        """Why a VM would not start now, or take no push; empty if no reason is known.

        To be called right before a start or a push. ``unit`` is what systemd has just said in full; without
        it, this asks. Raises `BusError`.
        """
        return obstacle(judge(vm, unit or manager.unit(vm.unit), self._ground, way))

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
        fingerprints = Fingerprints(self.store.key, self._identities)
        published = self._desired(vm, self.published([vm]), fingerprints)
        return not isinstance(published, Desired) or published.digest == attempt.digest

    def has_other_key(self) -> bool:
        """Whether the host has a key that the agent has yet to take up."""
        return isinstance(judge_key(self._ground), Passing)

    def has_usable_key(self) -> bool:
        """Whether PID 1 takes the host's key, and the agent seals with it. Otherwise PID 1 opens nothing."""
        return isinstance(judge_key(self._ground), Ready)

    def _units(self, vms: Iterable[VmConfig], manager: SystemManager) -> dict[str, UnitState]:
        kept = self.starts.invocations()
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
        published: Publication | Refused,
        unit: UnitState | None,
        fingerprints: Fingerprints,
    ) -> Observed:
        now = Observed(
            vm=vm,
            desired=published
            if isinstance(published, Refused)
            else self._desired(vm, published, fingerprints),
            sealed=self.store.current(vm.name),
            unit=unit,
            evidence=self.starts.evidence(vm, unit) if unit is not None else None,
            hint=self.starts.hint(vm, unit) if unit is not None else None,
            assumed=self.store.assumed(vm.name),
            attempt=self._attempt(vm),
            held=self.store.is_held(vm.name),
            approved=self.store.approved(vm.name) if vm.policy is Policy.APPROVE else "",
            owed=self.store.owed(vm.name),
            pushed=self.starts.pushed(vm, unit) if unit is not None else None,
        )
        if now.hint is None:
            now = replace(now, reported=self.store.last_report(vm.name))
        return replace(now, ran=self.starts.ran(now)) if vm.live else now

    def _attempt(self, vm: VmConfig) -> Attempt | None:
        """The record of a VM's last rollout, if any. A halt counts only while its cause lasts."""
        attempt = self.store.attempt(vm.name)
        if attempt is None or attempt.outcome is not Outcome.HALTED or not attempt.halted_for:
            return attempt
        return attempt if self.has_failed(attempt.halted_for) else None

    def _desired(
        self, vm: VmConfig, published: Publication, fingerprints: Fingerprints
    ) -> Desired | Refused:
        try:
            return desired(vm, published, fingerprints, self.guest_key(vm))
        except KeyFileError as error:  # one bad guest key must not stop the check of other VMs
            return Refused((describe(error),))
