# SPDX-License-Identifier: MIT
"""Carrying decisions out: sealing what is due, then restarting VMs, one at a time, and judging the result.

Everything is decided afresh right before it is done, under a lock, so that two of us never do it twice.
Further policies (windows, rates) belong into `Rollout.restart`, between the fresh decision and the job.
"""

from __future__ import annotations

import secrets
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec
import structlog

from agent.config import restart_order
from agent.errors import BusError
from agent.events import Event
from agent.reconcile import Decision, Observed, State
from agent.sealing import one_line, seal
from agent.store import Attempt, Outcome, Store
from launcher.handoff import Kind, Manifest, ManifestEntry, Secret, Stamp

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Sequence

    from agent.config import Config, VmConfig
    from agent.desired import Desired
    from agent.journal import Audit
    from agent.observe import Look, Observer
    from agent.units import SystemManager, UnitState

_log = structlog.get_logger()
_POLL_SECONDS = 0.05
ROLLOUT_LOCK = "rollout.lock"


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
        self._forget(look)
        run = new_run()
        sealed = []
        with self.store.lock():
            for decision, observed in zip(look.decisions, look.observed, strict=True):
                if decision.assume is not None:
                    self.store.assume(decision.vm.name, decision.assume)
                if decision.seal is not None:
                    self._seal(decision.vm, decision.seal, run, _to_keep(observed))
                    sealed.append(decision.vm.name)
        return sealed

    def restart(self, names: Sequence[str], manager: SystemManager) -> dict[str, State]:
        """Restart VMs that, looked at afresh, still need it; one after the other. The state each ends in.

        The rollout of a change stops at the first VM that fails: those after it that wait for the same
        change are held back. Raises `BusError`, `StoreError`.
        """
        outcome: dict[str, State] = {}
        failed_runs: dict[str, str] = {}
        with self.store.lock(ROLLOUT_LOCK):
            for name in sorted(names, key=restart_order(self.config.vms).index):
                if self.stop.is_set():
                    break
                vm = self.config.vm(name)
                look = self.observer.look_or_refuse([vm], manager)
                decision, observed = look.decisions[0], look.observed[0]
                manifest = self.store.current(name)
                if decision.roll_back and observed.attempt is not None:
                    outcome[name] = self._roll_back(vm, observed.attempt, manager)
                elif not decision.restart or decision.seal is not None or manifest is None:
                    outcome[name] = decision.state
                elif manifest.run in failed_runs:
                    outcome[name] = self._halt(vm, manifest, failed_runs[manifest.run])
                else:
                    previous = _previous(observed)
                    outcome[name] = self._restart(vm, manifest, previous, manager)
                    if outcome[name] is State.FAILED:
                        failed_runs[manifest.run] = name
        return outcome

    def _forget(self, look: Look) -> None:
        over = [decision.vm.name for decision in look.decisions if decision.forget]
        if over:
            # Not while somebody is at a rollout: what he has noted is not over, however it looks.
            with self.store.lock(ROLLOUT_LOCK, wait=False) as had:
                for name in over if had else ():
                    self.store.record_attempt(name, None)

    def _seal(self, vm: VmConfig, wanted: Desired, run: str, keep: Container[int]) -> None:
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
        self.store.write(manifest, values, keep)
        self.audit.record(
            Event.SEALED,
            f"{vm.name}: generation {manifest.generation} is sealed",
            run=run,
            vm=vm.name,
            unit=vm.unit,
            generation=manifest.generation,
            fingerprints={entry.name: entry.fingerprint for entry in wanted.entries},
        )

    def _restart(self, vm: VmConfig, manifest: Manifest, previous: int, manager: SystemManager) -> State:
        attempt = Attempt(manifest.digest, Outcome.RESTARTING, previous=previous)
        # Before systemd is asked: after a crash of ours it tells who took the VM down, and what it ran.
        self.store.record_attempt(vm.name, attempt)
        pause = self.config.rollout.retry_seconds
        reason = ""
        for number in range(1, self.config.rollout.attempts + 1):
            began = time.monotonic()
            again = number > 1
            if again:
                if self.stop.wait(pause) or not self._is_still_down(vm, manifest, manager):
                    return State.CHANGING
                pause *= 2
            self._record(Event.RESTART_ASKED, f"{vm.name}: restart asked for", vm, manifest)
            reason = self._ask(vm, manifest, manager, again=again)
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
        attempt = msgspec.structs.replace(attempt, outcome=Outcome.FAILED, reason=reason)
        self.store.record_attempt(vm.name, attempt)
        return self._roll_back(vm, attempt, manager) if previous else State.FAILED

    def _ask(self, vm: VmConfig, manifest: Manifest, manager: SystemManager, *, again: bool) -> str:
        """Ask systemd for a restart; why it was no success, empty when it was."""
        unit = manager.unit(vm.unit)
        ask = manager.try_restart if unit.is_active and not again else manager.restart_failed
        try:
            result = ask(vm.unit)
        except BusError as error:
            manager.unit(vm.unit)  # raises as well where systemd cannot be reached; else it has refused
            return str(error)
        return self._judge(vm, manifest, manager, unit.invocation_id, result)

    def _roll_back(self, vm: VmConfig, attempt: Attempt, manager: SystemManager) -> State:
        """Put a VM back on what it ran before; safe to be interrupted and done again at any point."""
        manifest = self.store.revert(vm.name, attempt.previous)
        reason = "the previous generation is there no more"
        if manifest is not None:
            unit = manager.unit(vm.unit)
            stamp = self.observer.stamp(vm, unit)
            stopped = unit.active == "inactive" and unit.result == "success"
            if stopped or (unit.is_active and stamp is not None and stamp.digest == manifest.digest):
                reason = ""
            else:
                reason = self._ask(vm, manifest, manager, again=True)
            if self.stop.is_set():
                return State.CHANGING
            event, message = Event.ROLLED_BACK, f"{vm.name}: back on generation {manifest.generation}"
            if reason:
                event = Event.ROLLBACK_FAILED
                message = f"{vm.name}: generation {manifest.generation} does not start either: {reason}"
            self._record(event, message, vm, manifest)
        else:
            self.audit.record(Event.ROLLBACK_FAILED, f"{vm.name}: {reason}", vm=vm.name, unit=vm.unit)
        said = f"{attempt.reason}; " + (reason or f"rolled back to generation {attempt.previous}")
        done = msgspec.structs.replace(attempt, outcome=Outcome.ROLLED_BACK, reason=said.removeprefix("; "))
        self.store.record_attempt(vm.name, done)
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
        self.store.record_attempt(vm.name, Attempt(manifest.digest, Outcome.HALTED, reason))
        return State.HALTED

    def _record(self, event: Event, message: str, vm: VmConfig, manifest: Manifest) -> None:
        self.audit.record(
            event, message, run=manifest.run, vm=vm.name, unit=vm.unit, generation=manifest.generation
        )


def _previous(observed: Observed) -> int:
    """The generation that a VM last ran well: the one it runs, or, where we took it down, the one before."""
    if observed.stamp is not None:
        return observed.stamp.generation
    return observed.attempt.previous if observed.attempt is not None else 0


def _to_keep(observed: Observed) -> set[int]:
    """Generations that a rollback may have to go back to, however many were sealed since."""
    stamp, attempt = observed.stamp, observed.attempt
    return {each for each in (stamp and stamp.generation, attempt and attempt.previous) if each}


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


def describe(error: Exception) -> str:
    """An error in one line, with its remedy."""
    hint = getattr(error, "hint", "")
    return f"{error}: {hint}" if hint else str(error)
