# SPDX-License-Identifier: MIT
"""Pushes a sealed generation to a VM's running guest: tries it several times, and notes what is proved.

Before the push, the agent records that it asks for one. While that push has no known end, the agent takes
what the guest holds for unknown. So a crash of the agent at any point costs at most one more push, which a
guest that has the generation already answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import msgspec

from credferry.agent.audit.events import Event
from credferry.agent.config.model import OnLiveFailure
from credferry.agent.reconcile.decision import State
from credferry.agent.rollout.push_jobs import NotTaken, Proved, Restarted, Undone
from credferry.agent.rollout.recording import record
from credferry.agent.rollout.rollback import generation_before
from credferry.agent.store.records import Attempt, Outcome, Pushed, Way

if TYPE_CHECKING:
    from credferry.agent.audit.writer import Audit
    from credferry.agent.config.model import VmConfig
    from credferry.agent.reconcile.observed import Observed
    from credferry.agent.rollout.push_jobs import PushJobs
    from credferry.agent.rollout.restarter import Restarter
    from credferry.agent.store.generations import Store
    from credferry.agent.systemd.units import SystemManager, UnitState
    from credferry.launcher.handoff import Manifest


@dataclass(frozen=True, slots=True)
class Pusher:
    """Pushes to VMs. The caller holds the VM's rollout lock."""

    store: Store
    audit: Audit
    jobs: PushJobs
    restarter: Restarter

    def push(
        self, vm: VmConfig, manifest: Manifest, now: Observed, manager: SystemManager, *, order: str
    ) -> State | None:
        """Push to a running VM. Returns its state; None if a restart must bring it the generation."""
        unit, runs = now.unit, now.runs
        if unit is None or runs is None:
            return None
        attempt = Attempt(
            manifest.digest,
            Outcome.RESTARTING,
            previous=generation_before(self.store, now),
            run=manifest.run,
            order=order,
            before=unit.invocation_id,
            way=Way.PUSH,
        )
        self.store.record_attempt(vm.name, attempt)
        held = now.pushed or Pushed(unit.invocation_id, runs.digest, runs.generation)
        self.store.record_pushed(vm.name, msgspec.structs.replace(held, asked=manifest.generation))
        began = self.restarter.monotonic()
        match self._try(vm, manifest, attempt, manager):
            case Proved():
                return self._arrived(vm, manifest, attempt, manager, began=began, unit=unit)
            case Restarted():
                self.store.record_attempt(vm.name, None)
                return State.CHANGING
            case None:
                return State.CHANGING
            case ending:
                return self._fail(vm, attempt, ending, now, manager)

    def _try(
        self, vm: VmConfig, manifest: Manifest, attempt: Attempt, manager: SystemManager
    ) -> Proved | Restarted | Undone | NotTaken | None:
        """Push as often as the configuration says. None if the agent stops."""
        ending: Undone | NotTaken = NotTaken("")
        is_certain = True
        limits, jobs = self.restarter.config.rollout, self.restarter.jobs
        for number in range(limits.attempts):
            if number and not self._is_still_there(vm, attempt, manager, number):
                return None if jobs.stop.is_set() else Restarted()
            self.restarter.pacer.note(vm, Way.PUSH)
            record(self.audit, Event.PUSH_ASKED, f"{vm.name}: push asked for", vm, manifest, attempt)
            found = self.jobs.run(vm, manifest, attempt.before, manager)
            if isinstance(found, Proved | Restarted):
                return found
            ending = found
            if jobs.stop.is_set():
                return None
            is_certain = is_certain and ending.is_certain
            message = f"{vm.name}: push of generation {manifest.generation} failed: {ending.reason}"
            record(self.audit, Event.PUSH_FAILED, message, vm, manifest, attempt)
            if not ending.is_passing:
                break
        # After one push without a known end, a later refusal says nothing about that one.
        return replace(ending, is_certain=is_certain)

    def _is_still_there(self, vm: VmConfig, attempt: Attempt, manager: SystemManager, number: int) -> bool:
        """Pause as between attempts of a restart. Whether the VM is still up, in the same invocation."""
        if not self.restarter.jobs.pause(number):
            return False
        unit = manager.unit(vm.unit)
        return unit.is_active and unit.invocation_id == attempt.before

    def _arrived(
        self,
        vm: VmConfig,
        manifest: Manifest,
        attempt: Attempt,
        manager: SystemManager,
        *,
        began: float,
        unit: UnitState,
    ) -> State:
        """Note what is proved, durably, before anything counts on it; then check the VM's health."""
        moment = self.restarter.pacer.clock.boot()
        now = Pushed(unit.invocation_id, manifest.digest, manifest.generation, manifest.run, moment)
        self.store.record_pushed(vm.name, now)
        return self.restarter.check_health(vm, manifest, attempt, manager, began=began, unit=unit)

    def _fail(
        self,
        vm: VmConfig,
        attempt: Attempt,
        ending: Undone | NotTaken,
        now: Observed,
        manager: SystemManager,
    ) -> State | None:
        """Record a failed push, and what follows from it."""
        is_certain = ending.is_certain and not now.is_in_doubt
        if is_certain:
            self.store.record_pushed(vm.name, now.pushed)
        if not self.restarter.observer.has_usable_key():
            # PID 1 could open nothing. The agent tries again once the host's key is usable.
            self.store.record_attempt(vm.name, None)
            return State.CHANGING
        if isinstance(ending, Undone):
            # Not known what the guest holds: only a restart brings it back to what it held before.
            way = Way.PUSH if is_certain else Way.RESTART
            return self.restarter.fail(vm, msgspec.structs.replace(attempt, way=way), ending.reason, manager)
        attempt = msgspec.structs.replace(attempt, outcome=Outcome.UNPUSHED, reason=ending.reason)
        self.store.record_attempt(vm.name, attempt)
        return None if vm.on_live_failure is OnLiveFailure.RESTART else State.FAILED
