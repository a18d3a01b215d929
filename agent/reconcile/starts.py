# SPDX-License-Identifier: MIT
"""What each VM was started with and has been pushed since: root's evidence, and the launcher's report."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from credferry.agent.errors import StoreError
from credferry.agent.reconcile.desired import Desired
from credferry.agent.store.evidence import Evidence, EvidenceDirectory
from credferry.agent.untrusted import read_untrusted
from credferry.launcher.handoff import Channel, HandoffError, Stamp, stamp_path

if TYPE_CHECKING:
    from collections.abc import Mapping

    from credferry.agent.config.model import Config, VmConfig
    from credferry.agent.reconcile.observed import Observed
    from credferry.agent.store.generations import Store
    from credferry.agent.store.records import Pushed
    from credferry.agent.systemd.units import UnitState
    from credferry.launcher.handoff import Manifest

_STAMP_SIZE_MAX = 4096
_REJECTS_SECONDS = 1.0
"""A program that rejects its credentials ends within this. systemd calls it active as soon as it runs
(systemd.service(5), Type=simple)."""


@dataclass(slots=True)
class _Report:
    """Where a VM's launcher reports, and its last report. For each invocation, only the first counts."""

    path: Path
    hint: Stamp | None = None


@dataclass(frozen=True, slots=True)
class Starts:
    """The starts of the VMs of one configuration."""

    config: Config
    store: Store
    _reports: dict[str, _Report] = field(default_factory=dict)
    _evidence: EvidenceDirectory = field(init=False)

    def __post_init__(self) -> None:
        """Set up access to the evidence."""
        object.__setattr__(self, "_evidence", EvidenceDirectory(Path(self.config.runtime_directory)))

    def invocations(self) -> Mapping[str, str]:
        """By VM: the invocation of its only recorded start."""
        return self._evidence.invocations()

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

    def pushed(self, vm: VmConfig, unit: UnitState) -> Pushed | None:
        """What the agent noted of pushes to the unit's present invocation; None if there were none."""
        noted = self.store.pushed(vm.name)
        return noted if noted is not None and noted.invocation_id == unit.invocation_id else None

    def is_proof(self, vm: VmConfig, manifest: Manifest) -> bool:
        """Whether root's record of the VM's last push is that of exactly this generation."""
        found = self._evidence.pushed(vm.name)
        if found is None or found.generation != manifest.generation:
            return False
        digests = (self.store.in_present_terms(vm.name, each.digest) for each in (found, manifest))
        return len(set(digests)) == 1

    def ran(self, now: Observed) -> Manifest | None:
        """The generation that a VM runs, if it is not the newest and a push depends on what has changed.

        None too where the store cannot be listed: a look must tell of the other VMs.
        """
        vm, runs = now.vm, now.runs
        newest = (now.desired if isinstance(now.desired, Desired) else None, now.sealed)
        is_newest = runs is not None and all(each and each.digest == runs.digest for each in newest)
        if runs is None or is_newest or all(each.live for each in vm.credentials.values()):
            return None
        try:
            return self.store.generation(vm.name, self.store.find(vm.name, runs.digest, runs.generation))
        except StoreError:
            return None

    def hint(self, vm: VmConfig, unit: UnitState) -> Stamp | None:
        """The launcher's report of the unit's present invocation; None if there is none.

        Another process of the VM's user can forge it. The agent uses it for two decisions only: when to
        stop waiting for a launch, and whether a new generation fits beside other OEM strings. A unit that
        has no launcher reports nothing: root's evidence of its start stands for the report.
        """
        if vm.channel is Channel.DIRECTORY:
            return self._report_by_evidence(vm, unit)
        report = self._report_of(vm)
        if report.hint is not None and report.hint.invocation_id == unit.invocation_id:
            return report.hint
        if not unit.invocation_id or not (unit.is_active or unit.is_changing):
            return None
        if noted := self.store.reported(vm.name, unit.invocation_id):
            report.hint = noted
            return noted
        runtime = Path(self.config.runtime_directory)
        try:
            hint = Stamp.from_bytes(read_untrusted(report.path, limit=_STAMP_SIZE_MAX, below=runtime))
        except (OSError, HandoffError):
            return None
        if hint.vm != vm.name or hint.invocation_id != unit.invocation_id:
            return None
        report.hint = hint
        return hint

    def _report_by_evidence(self, vm: VmConfig, unit: UnitState) -> Stamp | None:
        is_up = unit.is_active and unit.active_seconds >= _REJECTS_SECONDS
        evidence = self.evidence(vm, unit) if is_up else None
        if evidence is None:
            return None
        return Stamp(
            vm=vm.name,
            generation=evidence.generation,
            digest=evidence.digest,
            run=evidence.run,
            invocation_id=evidence.invocation_id,
            channel=Channel.DIRECTORY,
            other_oem_bytes=0,
        )

    def proved(self, vm: VmConfig, unit: UnitState) -> Evidence | Pushed | None:
        """What an invocation is proved to run: by its last push, else by its start; None if in doubt."""
        pushed = self.pushed(vm, unit)
        if pushed is not None:
            return None if pushed.asked else pushed
        return self.evidence(vm, unit)

    def launched(self, vm: VmConfig, unit: UnitState) -> Evidence | Pushed | None:
        """As `proved`, once the launcher has reported the start, or its time to report is over."""
        is_launched = self.hint(vm, unit) is not None or self.is_grace_over(unit)
        return self.proved(vm, unit) if is_launched else None

    def is_grace_over(self, unit: UnitState | None) -> bool:
        """Whether the launcher has had enough time to report the start of an active unit."""
        return unit is None or unit.active_seconds > self.config.rollout.stamp_seconds

    def _report_of(self, vm: VmConfig) -> _Report:
        report = self._reports.get(vm.name)
        if report is None:
            path = stamp_path(vm.name, Path(self.config.runtime_directory))
            report = self._reports[vm.name] = _Report(path)
        return report
