# SPDX-License-Identifier: MIT
"""Rolls a VM back to the generation before, after a failed restart or on an operator's order."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from credferry.agent.audit.events import Event
from credferry.agent.errors import UnsyncedStoreError
from credferry.agent.reconcile.decision import State
from credferry.agent.reconcile.observed import is_unproven
from credferry.agent.rollout.endings import Failed
from credferry.agent.rollout.recording import failure, record
from credferry.agent.rollout.slots import NoSlots
from credferry.agent.store.records import Outcome, Way
from credferry.agent.systemd.units import as_left

if TYPE_CHECKING:
    from credferry.agent.audit.writer import Audit
    from credferry.agent.config.model import VmConfig
    from credferry.agent.reconcile.observed import Observed
    from credferry.agent.reconcile.observer import Observer
    from credferry.agent.rollout.jobs import RestartJobs
    from credferry.agent.rollout.slots import Slots
    from credferry.agent.store.generations import Store
    from credferry.agent.store.records import Attempt
    from credferry.agent.systemd.units import SystemManager
    from credferry.launcher.handoff import Manifest


@dataclass(frozen=True, slots=True)
class Rollback:
    """Rolls VMs back. The caller holds the VM's rollout lock."""

    store: Store
    observer: Observer
    audit: Audit
    jobs: RestartJobs
    slots: Slots = field(default_factory=NoSlots)
    _told: dict[str, tuple[Event, Attempt]] = field(default_factory=dict)
    """By VM: the end of a rollback that is in the audit, and whose record could not be written yet."""

    def roll_back(
        self, vm: VmConfig, attempt: Attempt, manager: SystemManager, *, is_left_down: bool = False
    ) -> State:
        """Roll a VM back to what it ran before. It is safe to interrupt this at any point and repeat it.

        Where the generation that an operator ordered does not start, and the VM goes back to what it ran,
        the result is `State.FAILED`.
        """
        if attempt.outcome is not Outcome.FAILED:
            # Record the failure first: from then on no check seals the failed secrets again.
            reason = attempt.reason or "it was down when its restart was interrupted"
            self.slots.failed(vm, attempt.run, failure(attempt))
            attempt = msgspec.structs.replace(attempt, outcome=Outcome.FAILED, reason=reason)
            self.store.record_attempt(vm.name, attempt)
        if not self.observer.has_usable_key():  # PID 1 could open nothing; a later check continues
            return State.CHANGING if self.observer.has_other_key() else State.REFUSED
        reason = self._to(vm, attempt, manager, is_left_down=is_left_down)
        if isinstance(reason, State):
            return reason
        if reason and attempt.ran not in {0, attempt.previous}:
            # The ordered generation does not start. What the VM ran before is better than a VM that is down.
            attempt = msgspec.structs.replace(attempt, previous=attempt.ran, ran=0, reason=reason)
            self.store.record_attempt(vm.name, attempt)
            state = self.roll_back(vm, attempt, manager, is_left_down=True)
            return State.FAILED if state in {State.IN_STEP, State.ROLLED_BACK} else state
        now = self.store.generation(vm.name, attempt.previous)  # a newer one may be sealed by now
        if not reason and now is not None and now.digest == attempt.digest:
            # It runs again what it ran before, and that is what it should run.
            self.store.record_attempt(vm.name, None)
            self._told.pop(vm.name, None)
            return State.IN_STEP
        back = f"rolled back to generation {attempt.previous}"
        if attempt.by_operator:
            back += " by an operator; it stays there until its secrets change or an operator retries"
        said = f"{attempt.reason}; " + (reason or back)
        done = msgspec.structs.replace(
            attempt, outcome=Outcome.ROLLED_BACK, reason=said.removeprefix("; "), ran=0
        )
        self.store.record_attempt(vm.name, done)
        self._told.pop(vm.name, None)
        return State.ROLLED_BACK if attempt.by_operator and not reason else State.FAILED

    def _to(
        self, vm: VmConfig, attempt: Attempt, manager: SystemManager, *, is_left_down: bool
    ) -> str | State:
        """Bring the VM onto the generation to roll back to.

        Returns why that failed, empty if it did not, or the VM's state if a later check must go on.
        """
        try:
            manifest = self.store.revert(vm.name, attempt.previous)
        except UnsyncedStoreError:  # it is in place: a VM that is down does not wait for the disk
            manifest = self.store.generation(vm.name, attempt.previous)
        if manifest is None:
            # A start onto it would fail, and would leave it as what the VM's next start gets, too.
            reason = "the previous generation no longer exists"
            if self.store.generation(vm.name, attempt.previous) is not None:
                reason = f"the previous generation, {attempt.previous}, cannot be opened"
            message = f"{vm.name}: {reason}"
            self.audit.record(Event.ROLLBACK_FAILED, message, run=attempt.order, vm=vm.name, unit=vm.unit)
            return reason
        unit, reason = as_left(manager.unit(vm.unit), manager), ""
        # A guest that could not use the values of a push has put the old ones back, and stays up.
        is_push = attempt.way is Way.PUSH
        is_to_start = not is_push and not (unit.is_stopped and not is_left_down)
        if is_to_start and not self.jobs.runs(vm, unit, manifest):
            if self.observer.obstacle(vm, manager):
                return State.REFUSED  # roll back once it could start
            reason = self._start(vm, manifest, manager)
        if self.jobs.stop.is_set() or (reason and not self.observer.has_usable_key()):
            return State.CHANGING
        event, message = Event.ROLLED_BACK, f"{vm.name}: back on generation {manifest.generation}"
        if reason:
            event = Event.ROLLBACK_FAILED
            message = f"{vm.name}: generation {manifest.generation} does not start either: {reason}"
        if self._told.get(vm.name) != (event, attempt):
            record(self.audit, event, message, vm, manifest, attempt)
            self._told[vm.name] = event, attempt
        return reason

    def _start(self, vm: VmConfig, manifest: Manifest, manager: SystemManager) -> str:
        """Start the VM, with as many attempts as a restart has. Returns why the last one failed."""
        # An agent that could not record the rollback may have started the VM a moment ago.
        ending = self.jobs.under_way(vm, manifest, manager)
        ending = ending or self.jobs.run(vm, manifest, manager, again=True)
        for number in range(1, self.jobs.config.rollout.attempts):
            if not isinstance(ending, Failed):
                break
            if not self.jobs.wait_to_retry(vm, manifest, manager, ending, number):
                return ""
            ending = self.jobs.run(vm, manifest, manager, again=True)
        return ending.reason if isinstance(ending, Failed) else ""


def generation_before(store: Store, observed: Observed) -> int:
    """Generation to roll back to: the one that runs, or the one before if that failed; 0 for none.

    What has not passed its health check yet is used only if there is nothing else.
    """
    runs, attempt, name = observed.runs, observed.attempt, observed.vm.name
    if attempt is not None and (runs is None or runs.digest == attempt.digest):
        return attempt.ran or attempt.previous
    if runs is None:
        return 0
    # If its recorded restart never began, or its end is still to be checked, the record is still true.
    is_true = attempt is not None and (attempt.before == runs.invocation_id or is_unproven(observed))
    if attempt is not None and is_true and store.generation(name, attempt.previous) is not None:
        return attempt.previous
    return store.find(name, runs.digest, runs.generation)
