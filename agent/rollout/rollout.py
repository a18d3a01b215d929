# SPDX-License-Identifier: MIT
"""Restarts a VM onto the sealed generation, judges the result, and rolls back after a failure.

Right before each step the agent decides again, under the VM's lock. So the daemon and a command never
restart a VM twice. The agent records a restart before it asks systemd, so a crash of the agent loses
nothing.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from credferry.agent.audit.events import Event
from credferry.agent.errors import BusError, OrderError
from credferry.agent.reconcile import readiness
from credferry.agent.reconcile.decision import NOT_REPORTED, Decision, Observed, State
from credferry.agent.reconcile.desired import Desired
from credferry.agent.rollout import preconditions
from credferry.agent.rollout.endings import Ending, Failed, Overruled, Succeeded, judged
from credferry.agent.rollout.verdict import overdue, verdict
from credferry.agent.store.generations import rollout_lock
from credferry.agent.store.records import Assumed, Attempt, Outcome
from credferry.agent.systemd.units import CANCELED, DEPENDENCY, DONE, HEALTH_UNIT, as_left

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import AbstractContextManager

    from credferry.agent.audit.writer import Audit
    from credferry.agent.config.model import Config, VmConfig
    from credferry.agent.reconcile.observer import Look, Observer
    from credferry.agent.rollout.pacing import RestartPolicyGate
    from credferry.agent.store.evidence import Evidence
    from credferry.agent.store.generations import Store
    from credferry.agent.systemd.units import SystemManager, UnitState
    from credferry.launcher.handoff import Manifest

_POLL_SECONDS = 0.05
_OVERTAKEN_MAX = 3


@dataclass(frozen=True, slots=True)
class Rollout:
    """Restarts VMs. Setting ``stop`` ends any wait early; the next check then finishes the work."""

    config: Config
    store: Store
    observer: Observer
    audit: Audit
    pacer: RestartPolicyGate
    stop: threading.Event = field(default_factory=threading.Event)
    monotonic: Callable[[], float] = time.monotonic
    _overtaken: dict[str, int] = field(default_factory=dict)
    """How many times in a row newer secrets were published right before the restart."""

    def restart_all(self, names: Iterable[str], manager: SystemManager) -> dict[str, State]:
        """Restart VMs one after the other, and return each final state. Raises `BusError`, `StoreError`."""
        return {name: self.restart(name, manager) for name in names if not self.stop.is_set()}

    def restart(self, name: str, manager: SystemManager) -> State:
        """Check a VM again, restart it if it still needs a restart, and return its final state.

        The rollout of a change stops at the first VM that fails. The VMs that are not restarted yet are
        halted. Raises `BusError`, `StoreError`.
        """
        vm = self.config.vm(name)
        with self._lock(name):
            look = self.pacer.hold_back(self.observer.look_or_refuse([vm], manager))
            decision, observed = look.decisions[0], look.observed[0]
            attempt, manifest = observed.attempt, self.store.current(name)
            if decision.roll_back and attempt is not None:
                return self._roll_back(vm, attempt, manager)
            if decision.prove and attempt is not None and manifest is not None and observed.unit is not None:
                began = self.monotonic()
                return self._check_health(vm, manifest, attempt, manager, began=began, unit=observed.unit)
            if not decision.restart or manifest is None or self._is_overtaken(vm, decision):
                return decision.state
            # Do not halt a VM that the agent's restart left down: it would stay down because of another VM.
            is_up = observed.unit is not None and observed.unit.is_active
            failed = self._failed_for(manifest.run, vm) if is_up and not _is_retry(attempt) else ""
            if failed:
                return self._halt(vm, manifest, failed, self._previous(observed))
            order = attempt.order if attempt is not None and _is_retry(attempt) else ""
            if readiness.is_up(observed.unit) and self.observer.obstacle(vm, manager):
                return State.REFUSED  # the next check reports why
            return self._restart(vm, manifest, self._previous(observed), manager, observed.unit, order=order)

    def rotate(
        self,
        name: str,
        manager: SystemManager,
        since: float,
        order: str,
        stands: Callable[[], bool] = lambda: True,
    ) -> State | None:
        """Restart a running VM onto its sealed generation, on an operator's order.

        Windows, rates and turns do not apply. ``since`` is the monotonic time of the order: a restart after
        it also fulfils the order. ``order`` is the run id for the audit records. ``stands`` says whether the
        order is still valid. Returns None if the agent must seal newer secrets first. Raises `OrderError`,
        `BusError`, `StoreError`.
        """
        vm = self.config.vm(name)
        with self._lock(name):
            if not stands():
                return State.CHANGING
            look = self.observer.look_or_refuse([vm], manager)
            decision, observed = look.decisions[0], look.observed[0]
            manifest = preconditions.to_rotate(self.store, observed)
            if self._is_overtaken(vm, decision):
                return None
            up_for = observed.unit.active_seconds if observed.unit is not None else 0.0
            # Compare with the sealed generation, not with what is published: nothing else is sealed.
            is_on_it = observed.runs is not None and observed.runs.digest == manifest.digest
            if self.monotonic() - up_for > since and is_on_it:
                return State.IN_STEP
            self._require_ready(vm, manager)
            previous = self._previous(observed)
            # A rollback to the same generation would not help.
            previous = 0 if previous == manifest.generation else previous
            return self._restart(vm, manifest, previous, manager, observed.unit, order=order)

    def roll_back(
        self, name: str, manager: SystemManager, order: str, stands: Callable[[], bool] = lambda: True
    ) -> State | None:
        """Roll a VM back to the generation before its current one, on an operator's order.

        The VM stays there until its secrets change or an operator retries. ``order`` is the run id for the
        audit records. ``stands`` says whether the order is still valid. Returns None if the agent must seal
        newer secrets first. Raises `OrderError`, `BusError`, `StoreError`.
        """
        vm = self.config.vm(name)
        with self._lock(name):
            if not stands():
                return State.CHANGING
            look = self.observer.look_or_refuse([vm], manager)
            decision, observed = look.decisions[0], look.observed[0]
            manifest, previous = preconditions.to_roll_back(self.store, observed)
            if self._is_overtaken(vm, decision):
                return None
            if readiness.is_up(observed.unit):
                self._require_ready(vm, manager)
            wanted = observed.desired.digest if isinstance(observed.desired, Desired) else manifest.digest
            attempt = Attempt(
                wanted,
                Outcome.FAILED,
                previous=previous.generation,
                run=manifest.run,
                by_operator=True,
                order=order,
            )
            # Record first: after a crash, the next run of the agent continues from this record.
            self.store.record_attempt(name, attempt)
            return self._roll_back(vm, attempt, manager)

    def _require_ready(self, vm: VmConfig, manager: SystemManager) -> None:
        """Raises `OrderError` if the running VM would not start again."""
        if obstacle := self.observer.obstacle(vm, manager):
            raise OrderError(
                "NotReady",
                f"{vm.name}: is left running, as it would not start again: {obstacle}",
                hint="mend that first; see credferry doctor",
            )

    def _is_overtaken(self, vm: VmConfig, decision: Decision) -> bool:
        """Whether the agent must seal newer secrets first. At most ``_OVERTAKEN_MAX`` times in a row."""
        times = self._overtaken.pop(vm.name, 0)
        if decision.seal is None or times >= _OVERTAKEN_MAX:
            return False
        self._overtaken[vm.name] = times + 1
        return True

    def forget_ended(self, look: Look) -> None:
        """Clear the records of restarts that ended while the agent was not watching. Raises `StoreError`."""
        for decision, observed in zip(look.decisions, look.observed, strict=True):
            if not decision.forget:
                continue
            # Skip a VM that another thread or process is working on: its record is not over.
            with self._lock(decision.vm.name, wait=False) as had:
                if not had or self.store.attempt(decision.vm.name) != observed.attempt:
                    continue
                evidence, unit = observed.evidence, observed.unit
                if evidence is not None and unit is not None and unit.is_active:
                    # Report what the VM was started on: a newer generation may be sealed by now.
                    message = f"{decision.vm.name}: runs generation {evidence.generation}"
                    self._record(Event.RESTARTED, message, decision.vm, evidence, observed.attempt)
                self.store.record_attempt(decision.vm.name, None)

    def _previous(self, observed: Observed) -> int:
        """Generation to roll back to: the one that runs, or the one before if that failed; 0 for none."""
        runs, attempt, name = observed.runs, observed.attempt, observed.vm.name
        if attempt is not None and (runs is None or runs.digest == attempt.digest):
            return attempt.previous
        if runs is None:
            return 0
        # Its recorded restart never began, so the record is still true.
        is_as_before = attempt is not None and attempt.before == runs.invocation_id
        if (
            attempt is not None
            and is_as_before
            and self.store.generation(name, attempt.previous) is not None
        ):
            return attempt.previous
        return self.store.find(name, runs.digest, runs.generation)

    def _lock(self, name: str, *, wait: bool = True) -> AbstractContextManager[bool]:
        return self.store.lock(rollout_lock(name), wait=wait)

    def _failed_for(self, run: str, vm: VmConfig) -> str:
        """Name of a VM whose restart for the same change failed; empty if there is none."""
        for name in self.config.vms:
            attempt = self.store.attempt(name) if name != vm.name else None
            if (
                attempt is not None
                and attempt.run == run
                and not attempt.by_operator
                and attempt.outcome in {Outcome.FAILED, Outcome.ROLLED_BACK}
                and self.observer.has_failed(name)
            ):
                return name
        return ""

    def _restart(
        self,
        vm: VmConfig,
        manifest: Manifest,
        previous: int,
        manager: SystemManager,
        unit: UnitState | None,
        *,
        order: str,
    ) -> State:
        """Restart a VM. ``unit`` is its unit's state a moment ago; this method reads later states itself."""
        before = unit.invocation_id if unit is not None else ""
        attempt = Attempt(
            manifest.digest,
            Outcome.RESTARTING,
            previous=previous,
            run=manifest.run,
            order=order,
            before=before,
        )
        # Record before asking systemd: after a crash this says who took the VM down, and what it ran.
        self.store.record_attempt(vm.name, attempt)
        pause = self.config.rollout.retry_seconds
        reason, is_left_down = "", False
        for number in range(1, self.config.rollout.attempts + 1):
            began = self.monotonic()
            again = number > 1
            if again:
                if self.stop.wait(pause):
                    return State.CHANGING
                if not is_left_down and not self._is_still_down(vm, manifest, manager):
                    return State.CHANGING
                pause, unit = 2 * pause, None
            self.pacer.note_restart(vm)
            self._record(Event.RESTART_ASKED, f"{vm.name}: restart asked for", vm, manifest, attempt)
            ending = self._ask(vm, manifest, manager, unit, again=again)
            if isinstance(ending, Succeeded):
                return self._check_health(vm, manifest, attempt, manager, began=began, unit=ending.unit)
            if self.stop.is_set():
                return State.CHANGING
            if isinstance(ending, Overruled):
                # Nothing failed and nothing remains to be done: the next start gets the sealed generation.
                self.store.record_attempt(vm.name, None)
                return State.CHANGING
            reason, is_left_down = ending.reason, ending.is_left_down
            message = f"{vm.name}: restart onto generation {manifest.generation} failed: {reason}"
            self._record(Event.RESTART_FAILED, message, vm, manifest, attempt)
        if self.observer.has_other_key():
            # PID 1 could not open it because the host's key has changed: the generation is not at fault. The
            # next check takes up the key.
            again_later = msgspec.structs.replace(attempt, outcome=Outcome.RETRY, reason=reason)
            self.store.record_attempt(vm.name, again_later)
            return State.CHANGING
        return self._fail(vm, attempt, reason, manager, is_left_down=is_left_down)

    def _check_health(
        self,
        vm: VmConfig,
        manifest: Manifest,
        attempt: Attempt,
        manager: SystemManager,
        *,
        began: float,
        unit: UnitState,
    ) -> State:
        """Run the VM's health check, if it has one, and record how the restart ended."""
        # Report what the VM was started on: a newer generation may have been sealed while it was down.
        ran = self.observer.evidence(vm, unit) or manifest
        if vm.health:
            check = HEALTH_UNIT.format(vm=vm.name)
            result, reason = _job(manager.start, check, manager, check)
            if self.stop.is_set():
                return State.CHANGING
            if result != DONE:
                if result == CANCELED or self._is_overruled(vm, unit, manager):
                    return State.CHANGING  # the next check tries again
                message = f"{vm.name}: on generation {ran.generation} it is not healthy: {reason}"
                self._record(Event.RESTART_FAILED, message, vm, ran, attempt)
                return self._fail(vm, attempt, reason, manager)
        took = self.monotonic() - began
        message = f"{vm.name}: runs generation {ran.generation}, restarted in {took:.1f} s"
        self._record(Event.RESTARTED, message + self._lacks(vm, manifest, unit), vm, ran, attempt)
        self.store.record_attempt(vm.name, None)
        return State.IN_STEP

    def _lacks(self, vm: VmConfig, manifest: Manifest, unit: UnitState) -> str:
        """What is missing after a restart (report or evidence), as text for its audit record."""
        said = ""
        if self.observer.hint(vm, unit) is None:
            said += f"; {NOT_REPORTED}"
        if self.observer.evidence(vm, unit) is None and unit.is_active:
            # The VM got the generation that was current when systemd started it, or a newer one. Assume the
            # older: at worst the agent restarts the VM once more.
            self.store.assume(vm.name, Assumed(unit.invocation_id, manifest.digest, manifest.generation))
            said += "; no evidence of its start was kept: see journalctl -u " + vm.unit
        return said

    @staticmethod
    def _is_overruled(vm: VmConfig, before: UnitState, manager: SystemManager) -> bool:
        """Whether somebody stopped or restarted the VM during its health check."""
        unit = manager.unit(vm.unit)
        return unit.is_stopped or unit.has_job or unit.invocation_id != before.invocation_id

    def _fail(
        self,
        vm: VmConfig,
        attempt: Attempt,
        reason: str,
        manager: SystemManager,
        *,
        is_left_down: bool = False,
    ) -> State:
        attempt = msgspec.structs.replace(attempt, outcome=Outcome.FAILED, reason=reason)
        self.store.record_attempt(vm.name, attempt)
        if not attempt.previous:
            return State.FAILED
        return self._roll_back(vm, attempt, manager, is_left_down=is_left_down)

    def _ask(
        self,
        vm: VmConfig,
        manifest: Manifest,
        manager: SystemManager,
        unit: UnitState | None = None,
        *,
        again: bool,
    ) -> Ending:
        """Ask systemd for a restart, wait for it, and return how it ended."""
        unit = manager.unit(vm.unit) if unit is None else unit
        job = manager.try_restart if unit.is_active and not again else manager.restart_failed
        result, reason = _job(job, vm.unit, manager, "systemd's job")
        if result not in {DONE, CANCELED}:
            return Failed(reason, is_left_down=result == DEPENDENCY)
        # If it was canceled, another job replaced it. That job may have the same effect.
        before = unit.invocation_id
        deadline = self.monotonic() + self.config.rollout.stamp_seconds
        unit = manager.unit(vm.unit)
        restarts = unit.restarts
        while (said := self._verdict(vm, unit, manifest, before, restarts)) is None:
            if self.stop.wait(_POLL_SECONDS):
                return Failed("the agent stops before its end is known")  # a later run judges it
            if self.monotonic() >= deadline:
                said = overdue(unit, before)
                break
            unit = manager.unit(vm.unit)
        return judged(said, result, unit, before) if said else Succeeded(unit)

    def _verdict(
        self, vm: VmConfig, unit: UnitState, manifest: Manifest, before: str, restarts: int
    ) -> str | None:
        evidence, hint = self.observer.evidence(vm, unit), self.observer.hint(vm, unit)
        return verdict(unit, evidence, hint, manifest, before, restarts)

    def _roll_back(
        self, vm: VmConfig, attempt: Attempt, manager: SystemManager, *, is_left_down: bool = False
    ) -> State:
        """Roll a VM back to what it ran before. It is safe to interrupt this at any point and repeat it."""
        if attempt.outcome is not Outcome.FAILED:
            # Record the failure first: from then on no check seals the failed secrets again.
            reason = attempt.reason or "it was down when its restart was interrupted"
            attempt = msgspec.structs.replace(attempt, outcome=Outcome.FAILED, reason=reason)
            self.store.record_attempt(vm.name, attempt)
        if self.observer.has_other_key():
            return State.CHANGING  # PID 1 could open nothing; the next check takes up the key and continues
        manifest = self.store.revert(vm.name, attempt.previous)
        reason = "the previous generation is there no more"
        if manifest is not None:
            unit = as_left(manager.unit(vm.unit), manager)
            if (unit.is_stopped and not is_left_down) or self._runs(vm, unit, manifest):
                reason = ""
            elif readiness.is_up(unit) and self.observer.obstacle(vm, manager):
                return State.REFUSED  # it runs; roll back once it could start again
            else:
                ending = self._ask(vm, manifest, manager, again=True)
                reason = ending.reason if isinstance(ending, Failed) else ""
            if self.stop.is_set() or (reason and self.observer.has_other_key()):
                return State.CHANGING
            event, message = Event.ROLLED_BACK, f"{vm.name}: back on generation {manifest.generation}"
            if reason:
                event = Event.ROLLBACK_FAILED
                message = f"{vm.name}: generation {manifest.generation} does not start either: {reason}"
            self._record(event, message, vm, manifest, attempt)
        else:
            message = f"{vm.name}: {reason}"
            self.audit.record(Event.ROLLBACK_FAILED, message, run=attempt.order, vm=vm.name, unit=vm.unit)
        back = f"rolled back to generation {attempt.previous}"
        if attempt.by_operator:
            back += " by an operator, until its secrets change or a retry"
        said = f"{attempt.reason}; " + (reason or back)
        done = msgspec.structs.replace(attempt, outcome=Outcome.ROLLED_BACK, reason=said.removeprefix("; "))
        self.store.record_attempt(vm.name, done)
        return State.HELD if attempt.by_operator and not reason else State.FAILED

    def _is_still_down(self, vm: VmConfig, manifest: Manifest, manager: SystemManager) -> bool:
        """Whether the VM still needs the restart. False if a job is queued or somebody stopped the VM."""
        unit = as_left(manager.unit(vm.unit), manager)
        if unit.has_job or unit.is_stopped:
            return False
        return not self._runs(vm, unit, manifest)

    def _runs(self, vm: VmConfig, unit: UnitState, manifest: Manifest) -> bool:
        launched = self.observer.launched(vm, unit)
        return unit.is_active and launched is not None and launched.digest == manifest.digest

    def _halt(self, vm: VmConfig, manifest: Manifest, failed: str, previous: int) -> State:
        reason = f"held back, since the restart of {failed} for the same change failed"
        self._record(Event.HALTED, f"{vm.name}: {reason}", vm, manifest)
        attempt = Attempt(
            manifest.digest,
            Outcome.HALTED,
            reason,
            previous=previous,
            run=manifest.run,
            halted_for=failed,
        )
        self.store.record_attempt(vm.name, attempt)
        return State.HALTED

    def _record(
        self,
        event: Event,
        message: str,
        vm: VmConfig,
        what: Manifest | Evidence,
        attempt: Attempt | None = None,
    ) -> None:
        """Write an audit record under the run of the operator's order, or else under that of the change."""
        order = attempt.order if attempt is not None else ""
        self.audit.record(
            event,
            message,
            run=order or what.run,
            vm=vm.name,
            unit=vm.unit,
            generation=what.generation,
        )


def _job(ask: Callable[[str], str], unit: str, manager: SystemManager, what: str) -> tuple[str, str]:
    """Run a systemd job; return systemd's result word and a failure reason made from it.

    The word is empty if systemd refused the job. Raises `BusError` if systemd cannot be reached.
    """
    try:
        result = ask(unit)
    except BusError as error:
        manager.unit(unit)  # raises too if systemd cannot be reached; otherwise it refused the job
        return "", str(error)
    return result, f"{what} ended with {result!r}"


def _is_retry(attempt: Attempt | None) -> bool:
    return attempt is not None and attempt.outcome is Outcome.RETRY
