# SPDX-License-Identifier: MIT
"""Carrying decisions out: sealing what is due, then restarting VMs, one at a time, and judging the result.

Everything is decided afresh right before it is done, under a lock, so that two of us never do it twice.
Policies (order, windows, rollback) belong into `Rollout.restart`, between the fresh decision and the job.
"""

from __future__ import annotations

import secrets
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog

from agent.events import Event
from agent.reconcile import Decision, Desired, State
from agent.sealing import one_line, seal
from agent.store import Attempt, Store
from launcher.handoff import Kind, Manifest, ManifestEntry, Secret, Stamp

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from agent.config import Config, VmConfig
    from agent.errors import BusError
    from agent.journal import Audit
    from agent.observe import Look, Observer
    from agent.units import SystemManager, UnitState

_log = structlog.get_logger()
_POLL_SECONDS = 0.05


def new_run() -> str:
    """A correlation id: 32 hex digits under which the journal tells one rotation's story."""
    return secrets.token_hex(16)


@dataclass(frozen=True, slots=True)
class Rollout:
    """Carries out what is decided. ``stop`` set ends waiting early; the next look then finishes the work."""

    config: Config
    store: Store
    observer: Observer
    audit: Audit
    stop: threading.Event = field(default_factory=threading.Event)

    def seal_due(self, look: Look) -> list[str]:
        """Seal a new generation for each VM of a look that is due one; names of the VMs sealed.

        Raises `StoreError`, `SealError`, `KeyFileError`.
        """
        due = [decision for decision in look.decisions if decision.seal is not None]
        run = new_run()
        with self.store.lock():
            for decision in look.decisions:
                if decision.assume is not None:
                    self.store.assume(decision.vm.name, decision.assume)
            for decision in due:
                if decision.seal is not None:
                    self._seal(decision.vm, decision.seal, run)
        return [decision.vm.name for decision in due]

    def restart(self, names: Sequence[str], manager: SystemManager) -> dict[str, State]:
        """Restart VMs that, looked at afresh, still need it; one after the other. The state each ends in.

        The rollout of a change stops at the first VM that fails: those after it that wait for the same
        change are held back. Raises `BusError`, `StoreError`, `SourceError`.
        """
        outcome: dict[str, State] = {}
        failed_runs: dict[str, str] = {}
        with self.store.lock("rollout.lock"):
            for name in names:
                if self.stop.is_set():
                    break
                vm = self.config.vm(name)
                decision = self.observer.look([vm], manager).decisions[0]
                manifest = self.store.current(name)
                if not decision.restart or decision.seal is not None or manifest is None:
                    outcome[name] = decision.state
                elif manifest.run in failed_runs:
                    outcome[name] = self._halt(vm, manifest, failed_runs[manifest.run])
                else:
                    outcome[name] = self._restart(vm, manifest, manager)
                    if outcome[name] is State.FAILED:
                        failed_runs[manifest.run] = name
        return outcome

    def _seal(self, vm: VmConfig, wanted: Desired, run: str) -> None:
        before = self.store.current(vm.name)
        changed = _changed(before, wanted.entries)
        guest = self.observer.guest_key(vm)
        values = {
            name: Secret(one_line(seal(value.reveal(), name=name, key=guest)))
            if guest is not None and vm.kind(name) is Kind.SEALED
            else value
            for name, value in wanted.values.items()
        }
        manifest = Manifest(
            vm=vm.name,
            generation=self.store.next_number(vm.name),
            digest=wanted.digest,
            run=run,
            delivery=wanted.delivery,
            credentials=wanted.entries,
        )
        names = ", ".join(changed) or "the way of delivery"
        self.audit.record(
            Event.PUBLISHED,
            f"{vm.name}: a change is published: {names}",
            run=run,
            vm=vm.name,
            unit=vm.unit,
            fingerprints=changed,
        )
        self.store.write(manifest, values)
        self.audit.record(
            Event.SEALED,
            f"{vm.name}: generation {manifest.generation} is sealed",
            run=run,
            vm=vm.name,
            unit=vm.unit,
            generation=manifest.generation,
            fingerprints={entry.name: entry.fingerprint for entry in wanted.entries},
        )

    def _restart(self, vm: VmConfig, manifest: Manifest, manager: SystemManager) -> State:
        pause = self.config.rollout.retry_seconds
        reason = ""
        for attempt in range(1, self.config.rollout.attempts + 1):
            began = time.monotonic()
            again = attempt > 1
            if again:
                if self.stop.wait(pause) or not self._is_still_down(vm, manifest, manager):
                    return State.CHANGING
                pause *= 2
            self._record(Event.RESTART_ASKED, f"{vm.name}: restart asked for", vm, manifest)
            before = manager.unit(vm.unit).invocation_id
            result = manager.restart_failed(vm.unit) if again else manager.try_restart(vm.unit)
            reason = self._judge(vm, manifest, manager, before, result)
            if not reason:
                took = time.monotonic() - began
                message = f"{vm.name}: runs generation {manifest.generation}, restarted in {took:.1f} s"
                self._record(Event.RESTARTED, message, vm, manifest)
                self.store.record_attempt(vm.name, None)
                return State.IN_STEP
            if self.stop.is_set():
                return State.CHANGING
            self._record(
                Event.RESTART_FAILED,
                f"{vm.name}: restart onto generation {manifest.generation} failed: {reason}",
                vm,
                manifest,
            )
        self.store.record_attempt(vm.name, Attempt(manifest.digest, "failed", reason))
        return State.FAILED

    def _is_still_down(self, vm: VmConfig, manifest: Manifest, manager: SystemManager) -> bool:
        """Whether a restart of ours left the VM down or on old values; stopped by somebody is neither."""
        unit = manager.unit(vm.unit)
        if unit.active == "inactive" and unit.result == "success":
            return False
        stamp = self.observer.stamp(vm, unit)
        return not (unit.is_active and stamp is not None and stamp.digest == manifest.digest)

    def _judge(
        self, vm: VmConfig, manifest: Manifest, manager: SystemManager, before: str, result: str
    ) -> str:
        """Why a restart was no success; empty when it was. ``done`` alone says only that the job ended."""
        if result != "done":
            return f"systemd's job ended with {result!r}"
        deadline = time.monotonic() + self.config.rollout.stamp_seconds
        unit = manager.unit(vm.unit)
        while (verdict := self._verdict(unit, self.observer.stamp(vm, unit), manifest, before)) is None:
            if time.monotonic() >= deadline or self.stop.wait(_POLL_SECONDS):
                return _overdue(unit, before)
            unit = manager.unit(vm.unit)
        return verdict

    @staticmethod
    def _verdict(unit: UnitState, stamp: Stamp | None, manifest: Manifest, before: str) -> str | None:
        """As `_judge`, from one look; None when it is too early to tell."""
        if unit.active in {"failed", "inactive"}:
            return f"its unit is {unit.active}, with result {unit.result!r}"
        if not unit.is_active or unit.invocation_id == before or stamp is None:
            return None
        # A newer one than ours was sealed while the VM was down, and it started on that: as good.
        if stamp.digest == manifest.digest or stamp.generation > manifest.generation:
            return ""
        return f"it was started on generation {stamp.generation}"

    def _halt(self, vm: VmConfig, manifest: Manifest, failed: str) -> State:
        reason = f"held back, since the restart of {failed} for the same change failed"
        self._record(Event.HALTED, f"{vm.name}: {reason}", vm, manifest)
        self.store.record_attempt(vm.name, Attempt(manifest.digest, "halted", reason))
        return State.HALTED

    def _record(self, event: Event, message: str, vm: VmConfig, manifest: Manifest) -> None:
        self.audit.record(
            event, message, run=manifest.run, vm=vm.name, unit=vm.unit, generation=manifest.generation
        )


def _overdue(unit: UnitState, before: str) -> str:
    if unit.invocation_id == before:
        return "its unit was not restarted"
    if unit.is_active:
        return "it left no stamp: is its hypervisor's command credferry-launch?"
    return f"its unit is {unit.active} ({unit.sub}), with result {unit.result!r}"


def _changed(before: Manifest | None, entries: Iterable[ManifestEntry]) -> dict[str, str]:
    """Fingerprints of the credentials that differ from a manifest's, by name."""
    known = {(entry.name, entry.fingerprint) for entry in (before.credentials if before else ())}
    return {each.name: each.fingerprint for each in entries if (each.name, each.fingerprint) not in known}


@dataclass(slots=True)
class Reporter:
    """Reports each VM's refusal once, and again only when its reasons change."""

    audit: Audit
    _told: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def report(self, decisions: Iterable[Decision]) -> None:
        """Write what is new in these decisions to the audit. Raises `StoreError`."""
        for decision in decisions:
            vm = decision.vm
            reasons = decision.reasons if decision.state in {State.REFUSED, State.NO_UNIT} else ()
            if reasons and self._told.get(vm.name) != reasons and not decision.look_again:
                message = f"{vm.name}: keeps what it has: {'; '.join(reasons)}"
                self.audit.record(Event.REFUSED, message, vm=vm.name, unit=vm.unit)
            if not decision.look_again:
                self._told[vm.name] = reasons


def describe(error: BusError | Exception) -> str:
    """An error in one line, with its remedy."""
    hint = getattr(error, "hint", "")
    return f"{error}: {hint}" if hint else str(error)
