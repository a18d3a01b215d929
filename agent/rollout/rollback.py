# SPDX-License-Identifier: MIT
"""Rolls a VM back to the generation before, after a failed restart or on an operator's order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from credferry.agent.audit.events import Event
from credferry.agent.reconcile.decision import State
from credferry.agent.rollout.endings import Failed
from credferry.agent.rollout.recording import record
from credferry.agent.store.records import Outcome
from credferry.agent.systemd.units import as_left

if TYPE_CHECKING:
    from credferry.agent.audit.writer import Audit
    from credferry.agent.config.model import VmConfig
    from credferry.agent.reconcile.decision import Observed
    from credferry.agent.reconcile.observer import Observer
    from credferry.agent.rollout.jobs import RestartJobs
    from credferry.agent.store.generations import Store
    from credferry.agent.store.records import Attempt
    from credferry.agent.systemd.units import SystemManager


@dataclass(frozen=True, slots=True)
class Rollback:
    """Rolls VMs back. The caller holds the VM's rollout lock."""

    store: Store
    observer: Observer
    audit: Audit
    jobs: RestartJobs

    def roll_back(
        self, vm: VmConfig, attempt: Attempt, manager: SystemManager, *, is_left_down: bool = False
    ) -> State:
        """Roll a VM back to what it ran before. It is safe to interrupt this at any point and repeat it."""
        if attempt.outcome is not Outcome.FAILED:
            # Record the failure first: from then on no check seals the failed secrets again.
            reason = attempt.reason or "it was down when its restart was interrupted"
            attempt = msgspec.structs.replace(attempt, outcome=Outcome.FAILED, reason=reason)
            self.store.record_attempt(vm.name, attempt)
        if not self.observer.has_usable_key():  # PID 1 could open nothing; a later check continues
            return State.CHANGING if self.observer.has_other_key() else State.REFUSED
        manifest = self.store.revert(vm.name, attempt.previous)
        reason = "the previous generation is there no more"
        if manifest is not None:
            unit = as_left(manager.unit(vm.unit), manager)
            if (unit.is_stopped and not is_left_down) or self.jobs.runs(vm, unit, manifest):
                reason = ""
            elif self.observer.obstacle(vm, manager):
                return State.REFUSED  # roll back once it could start
            else:
                ending = self.jobs.run(vm, manifest, manager, again=True)
                reason = ending.reason if isinstance(ending, Failed) else ""
            if self.jobs.stop.is_set() or (reason and not self.observer.has_usable_key()):
                return State.CHANGING
            event, message = Event.ROLLED_BACK, f"{vm.name}: back on generation {manifest.generation}"
            if reason:
                event = Event.ROLLBACK_FAILED
                message = f"{vm.name}: generation {manifest.generation} does not start either: {reason}"
            record(self.audit, event, message, vm, manifest, attempt)
            if not reason and manifest.digest == attempt.digest:
                # It runs again what it ran before, and that is what it should run.
                self.store.record_attempt(vm.name, None)
                return State.IN_STEP
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


def generation_before(store: Store, observed: Observed) -> int:
    """Generation to roll back to: the one that runs, or the one before if that failed; 0 for none."""
    runs, attempt, name = observed.runs, observed.attempt, observed.vm.name
    if attempt is not None and (runs is None or runs.digest == attempt.digest):
        return attempt.previous
    if runs is None:
        return 0
    # Its recorded restart never began, so the record is still true.
    is_as_before = attempt is not None and attempt.before == runs.invocation_id
    if attempt is not None and is_as_before and store.generation(name, attempt.previous) is not None:
        return attempt.previous
    return store.find(name, runs.digest, runs.generation)
