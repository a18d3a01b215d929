# SPDX-License-Identifier: MIT
"""Restarts a VM onto a sealed generation: tries it several times, checks its health, rolls back a failure.

A push ends with the same health check.

The record of the attempt comes before each request to systemd, so a crash of the agent loses nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from credferry.agent.audit.events import Event
from credferry.agent.config.units import AfterFails
from credferry.agent.reconcile.decision import State
from credferry.agent.reconcile.desired import are_of_one_key
from credferry.agent.reconcile.observed import NOT_REPORTED
from credferry.agent.rollout.endings import Failed, Overruled, Succeeded
from credferry.agent.rollout.jobs import run_job
from credferry.agent.rollout.recording import failure, record
from credferry.agent.store.records import Assumed, Attempt, Outcome, Way
from credferry.agent.systemd.units import CANCELED, DONE, HEALTH_UNIT
from credferry.launcher.handoff import Channel

if TYPE_CHECKING:
    from collections.abc import Callable

    from credferry.agent.audit.writer import Audit
    from credferry.agent.config.model import Config, VmConfig
    from credferry.agent.reconcile.observer import Observer
    from credferry.agent.rollout.around import Around
    from credferry.agent.rollout.jobs import RestartJobs
    from credferry.agent.rollout.pacing import RestartPolicyGate
    from credferry.agent.rollout.rollback import Rollback
    from credferry.agent.store.evidence import Evidence
    from credferry.agent.store.generations import Store
    from credferry.agent.store.records import Pushed
    from credferry.agent.systemd.units import SystemManager, UnitState
    from credferry.launcher.handoff import Manifest


@dataclass(frozen=True, slots=True)
class Restarter:
    """Restarts VMs. The caller holds the VM's rollout lock."""

    config: Config
    store: Store
    observer: Observer
    audit: Audit
    pacer: RestartPolicyGate
    jobs: RestartJobs
    rollback: Rollback
    around: Around
    monotonic: Callable[[], float]

    def restart(
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
        if (stopped := self._run_before(vm, attempt, unit, manager)) is not None:
            return stopped
        # Record before asking systemd: after a crash this says who took the VM down, and what it ran.
        self.store.record_attempt(vm.name, attempt)
        failed = Failed("")
        for number in range(self.config.rollout.attempts):
            began = self.monotonic()
            if number:
                if not self.jobs.wait_to_retry(vm, manifest, manager, failed, number):
                    return State.CHANGING
                unit = None
            self.pacer.note(vm, Way.RESTART)
            record(self.audit, Event.RESTART_ASKED, f"{vm.name}: restart asked for", vm, manifest, attempt)
            ending = self.jobs.run(vm, manifest, manager, unit, again=number > 0)
            if isinstance(ending, Succeeded):
                return self.check_health(vm, manifest, attempt, manager, began=began, unit=ending.unit)
            if self.jobs.stop.is_set():
                return State.CHANGING
            if isinstance(ending, Overruled):
                # Nothing failed and nothing remains to be done: the next start gets the sealed generation.
                self.store.record_attempt(vm.name, None)
                return State.CHANGING
            failed = ending
            message = f"{vm.name}: restart onto generation {manifest.generation} failed: {failed.reason}"
            record(self.audit, Event.RESTART_FAILED, message, vm, manifest, attempt)
        if not self.observer.has_usable_key():
            # PID 1 could open nothing, so the generation is not at fault. The agent tries again once it has
            # taken up the host's new key, or once the key's file is as systemd takes it.
            again_later = msgspec.structs.replace(attempt, outcome=Outcome.RETRY, reason=failed.reason)
            self.store.record_attempt(vm.name, again_later)
            return State.CHANGING
        return self.fail(vm, attempt, failed.reason, manager, is_left_down=failed.is_left_down)

    def _run_before(
        self, vm: VmConfig, attempt: Attempt, unit: UnitState | None, manager: SystemManager
    ) -> State | None:
        """Run the operator's unit before the restart. Returns the VM's state if no restart may follow."""
        reason = self.around.before(vm, unit, manager)
        if reason:
            reason = f"until {vm.unit_of(vm.units.before)} succeeds: {reason}"
            moment = self.around.clock.boot()
            put_off = msgspec.structs.replace(attempt, outcome=Outcome.PUT_OFF, reason=reason, moment=moment)
            self.store.record_attempt(vm.name, put_off)
            self.around.failed(vm, manager)
            return State.WAITING
        if not vm.units.before or unit is None or not unit.is_active:
            return None
        # It may have taken minutes. Somebody may have stopped or held the VM, or made a start impossible.
        now = manager.unit(vm.unit)
        if not now.is_active or now.invocation_id != attempt.before or self.store.is_held(vm.name):
            return State.CHANGING
        return State.REFUSED if self.observer.obstacle(vm, manager) else None

    def check_health(
        self,
        vm: VmConfig,
        manifest: Manifest,
        attempt: Attempt,
        manager: SystemManager,
        *,
        began: float,
        unit: UnitState,
    ) -> State:
        """Run the VM's health check, if it has one, and record how the restart or the push ended."""
        # Report what the VM was started on: a newer generation may have been sealed while it was down.
        ran = self.observer.starts.proved(vm, unit) or manifest
        is_push = attempt.way is Way.PUSH
        if vm.health:
            check = HEALTH_UNIT.format(vm=vm.name)
            result, reason = run_job(manager.start, check, manager, check)
            if self.jobs.stop.is_set():
                return State.CHANGING
            if result != DONE:
                if result == CANCELED or self._is_overruled(vm, unit, manager):
                    return State.CHANGING  # the next check tries again
                what = f"the health check failed on generation {ran.generation}"
                return self._is_unwell(vm, manifest, attempt, manager, what, ran, reason)
        left = self.around.after(vm, manager)
        if left and not is_push and vm.units.after_fails is AfterFails.ROLLBACK:
            what = f"the unit after its restart failed on generation {ran.generation}"
            return self._is_unwell(vm, manifest, attempt, manager, what, ran, left)
        took = self.monotonic() - began
        if is_push:
            message = f"{vm.name}: its guest took generation {ran.generation} in {took:.1f} s"
            record(self.audit, Event.PUSHED, message, vm, ran, attempt)
        else:
            message = f"{vm.name}: runs generation {ran.generation}, restarted in {took:.1f} s"
            record(
                self.audit,
                Event.RESTARTED,
                message + self._lacks(vm, manifest, unit, left),
                vm,
                ran,
                attempt,
            )
        self.store.record_attempt(vm.name, None)
        return State.IN_STEP

    def _is_unwell(  # noqa: PLR0917 (what it reports, once)
        self,
        vm: VmConfig,
        manifest: Manifest,
        attempt: Attempt,
        manager: SystemManager,
        what: str,
        ran: Manifest | Evidence | Pushed,
        reason: str,
    ) -> State:
        """The VM is up and does not do its work: record that, and roll it back."""
        event = Event.PUSH_FAILED if attempt.way is Way.PUSH else Event.RESTART_FAILED
        record(self.audit, event, f"{vm.name}: {what}: {reason}", vm, ran, attempt)
        # A guest takes no older generation: the way back from a push is a restart.
        attempt = msgspec.structs.replace(attempt, way=Way.RESTART)
        if ran is not manifest and are_of_one_key(ran.digest, attempt.digest):
            # It may have come up on something newer. That has failed, and must not be tried again.
            attempt = msgspec.structs.replace(attempt, digest=ran.digest, run=ran.run)
        if attempt.previous == ran.generation:
            # It ran this generation before: another restart would not make it healthy.
            attempt = msgspec.structs.replace(attempt, previous=0)
        return self.fail(vm, attempt, reason, manager)

    def _lacks(self, vm: VmConfig, manifest: Manifest, unit: UnitState, said: str = "") -> str:
        """What is missing after a restart (report, evidence, ``said``), as text for its audit record."""
        said = f"; {said}" if said else ""
        if vm.channel is not Channel.DIRECTORY and self.observer.starts.hint(vm, unit) is None:
            said += f"; {NOT_REPORTED}"
        if self.observer.starts.evidence(vm, unit) is None and unit.is_active:
            # The VM got the generation that was current when systemd started it, or a newer one. Assume the
            # older: at worst the agent restarts the VM once more.
            self.store.assume(vm.name, Assumed(unit.invocation_id, manifest.digest, manifest.generation))
            said += "; there is no evidence of its start: see journalctl -u " + vm.unit
        return said

    @staticmethod
    def _is_overruled(vm: VmConfig, before: UnitState, manager: SystemManager) -> bool:
        """Whether somebody stopped or restarted the VM during its health check."""
        unit = manager.unit(vm.unit)
        return unit.is_stopped or unit.has_job or unit.invocation_id != before.invocation_id

    def fail(
        self,
        vm: VmConfig,
        attempt: Attempt,
        reason: str,
        manager: SystemManager,
        *,
        is_left_down: bool = False,
    ) -> State:
        """Record that a generation failed, and roll the VM back."""
        # Before the record of the failure: a crash between the two leaves a claim that halts the group.
        self.pacer.slots.failed(vm, attempt.run, failure(attempt))
        attempt = msgspec.structs.replace(attempt, outcome=Outcome.FAILED, reason=reason)
        self.store.record_attempt(vm.name, attempt)
        self.around.failed(vm, manager)
        if not attempt.previous:
            return State.FAILED
        return self.rollback.roll_back(vm, attempt, manager, is_left_down=is_left_down)
