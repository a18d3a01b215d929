# SPDX-License-Identifier: MIT
"""Restarting a VM onto what is sealed, judging the result, and putting it back where that went wrong.

The agent decides afresh right before each step, under the VM's lock, so the daemon and a command never
restart a VM twice. It notes what is under way before it asks systemd, so a crash of the agent loses nothing.
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
    """Restarts VMs. ``stop`` set ends waiting early; the next look then finishes the work."""

    config: Config
    store: Store
    observer: Observer
    audit: Audit
    pacer: RestartPolicyGate
    stop: threading.Event = field(default_factory=threading.Event)
    monotonic: Callable[[], float] = time.monotonic
    _overtaken: dict[str, int] = field(default_factory=dict)
    """How often in a row something newer was published right before the restart."""

    def restart_all(self, names: Iterable[str], manager: SystemManager) -> dict[str, State]:
        """Restart VMs one after the other; the state each ends in. Raises `BusError`, `StoreError`."""
        return {name: self.restart(name, manager) for name in names if not self.stop.is_set()}

    def restart(self, name: str, manager: SystemManager) -> State:
        """Restart a VM that, looked at afresh, still needs it; the state it ends in.

        The rollout of a change stops at the first VM that fails: those that are not restarted yet are held
        back. Raises `BusError`, `StoreError`.
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
            # One that a restart of ours left down is not left there for another's sake.
            is_up = observed.unit is not None and observed.unit.is_active
            failed = self._failed_for(manifest.run, vm) if is_up and not _is_retry(attempt) else ""
            if failed:
                return self._halt(vm, manifest, failed, self._previous(observed))
            order = attempt.order if attempt is not None and _is_retry(attempt) else ""
            if readiness.is_up(observed.unit) and self.observer.obstacle(vm, manager):
                return State.REFUSED  # the next look says why, and when that is over
            return self._restart(vm, manifest, self._previous(observed), manager, observed.unit, order=order)

    def rotate(
        self,
        name: str,
        manager: SystemManager,
        since: float,
        order: str,
        stands: Callable[[], bool] = lambda: True,
    ) -> State | None:
        """Restart a running VM onto what is sealed, by an operator's word: past windows, rates and turns.

        ``since`` is the moment of that word, monotonic: a restart after it is as good. ``order`` is the run
        under which what is done is told. ``stands`` says
        whether the order was not dropped meanwhile. None where something newer is to be sealed first. Raises
        `OrderError`, `BusError`, `StoreError`.
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
            # Whatever is published, or cannot be read: nothing else is sealed.
            is_on_it = observed.runs is not None and observed.runs.digest == manifest.digest
            if self.monotonic() - up_for > since and is_on_it:
                return State.IN_STEP
            self._require_ready(vm, manager)
            previous = self._previous(observed)
            # Going back to the very same would be no way out.
            previous = 0 if previous == manifest.generation else previous
            return self._restart(vm, manifest, previous, manager, observed.unit, order=order)

    def roll_back(
        self, name: str, manager: SystemManager, order: str, stands: Callable[[], bool] = lambda: True
    ) -> State | None:
        """Put a VM back on the generation before its current one, by an operator's word.

        There it stays until its secrets change, or a retry. ``order`` is the run under which what is done is
        told. ``stands`` says whether the order was not
        dropped meanwhile. None where something newer is to be sealed first. Raises `OrderError`, `BusError`,
        `StoreError`.
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
            # Before anything is done: whoever finds this after a crash of ours goes on from there.
            self.store.record_attempt(name, attempt)
            return self._roll_back(vm, attempt, manager)

    def _require_ready(self, vm: VmConfig, manager: SystemManager) -> None:
        """Raises `OrderError` where a VM that is up would not start again."""
        if obstacle := self.observer.obstacle(vm, manager):
            raise OrderError(
                "NotReady",
                f"{vm.name}: is left running, as it would not start again: {obstacle}",
                hint="mend that first; see credferry doctor",
            )

    def _is_overtaken(self, vm: VmConfig, decision: Decision) -> bool:
        """Whether something newer is to be sealed first; a producer that never rests is not waited for."""
        times = self._overtaken.pop(vm.name, 0)
        if decision.seal is None or times >= _OVERTAKEN_MAX:
            return False
        self._overtaken[vm.name] = times + 1
        return True

    def forget_ended(self, look: Look) -> None:
        """Let go of restarts that ended well while nobody of ours was there to see. Raises `StoreError`."""
        for decision, observed in zip(look.decisions, look.observed, strict=True):
            if not decision.forget:
                continue
            # Not while somebody is at it: what he has noted is not over, however it looks.
            with self._lock(decision.vm.name, wait=False) as had:
                if not had or self.store.attempt(decision.vm.name) != observed.attempt:
                    continue
                evidence, unit = observed.evidence, observed.unit
                if evidence is not None and unit is not None and unit.is_active:
                    # What it was started on: something newer may be sealed by now.
                    message = f"{decision.vm.name}: runs generation {evidence.generation}"
                    self._record(Event.RESTARTED, message, decision.vm, evidence, observed.attempt)
                self.store.record_attempt(decision.vm.name, None)

    def _previous(self, observed: Observed) -> int:
        """The generation that a VM last ran well: the one it runs, or the one before if that went wrong."""
        runs, attempt, name = observed.runs, observed.attempt, observed.vm.name
        if attempt is not None and (runs is None or runs.digest == attempt.digest):
            return attempt.previous
        if runs is None:
            return 0
        # Its restart was noted and never began: what was so then is so now.
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
        """The VM whose restart for the same change failed, if any."""
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
        """Restart a VM whose unit was seen a moment ago; what becomes of it is seen afresh."""
        before = unit.invocation_id if unit is not None else ""
        attempt = Attempt(
            manifest.digest,
            Outcome.RESTARTING,
            previous=previous,
            run=manifest.run,
            order=order,
            before=before,
        )
        # Before systemd is asked: after a crash of ours it tells who took the VM down, and what it ran.
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
                # Nothing has failed, and nothing is to be finished: what is sealed waits for the next start.
                self.store.record_attempt(vm.name, None)
                return State.CHANGING
            reason, is_left_down = ending.reason, ending.is_left_down
            message = f"{vm.name}: restart onto generation {manifest.generation} failed: {reason}"
            self._record(Event.RESTART_FAILED, message, vm, manifest, attempt)
        if self.observer.has_other_key():
            # That PID 1 could not open it says nothing of the generation. The next look takes up the key.
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
        """Have a VM that was restarted found healthy, where it has a check of its health."""
        # What it was started on: something newer may have been sealed while it was down.
        ran = self.observer.evidence(vm, unit) or manifest
        if vm.health:
            check = HEALTH_UNIT.format(vm=vm.name)
            result, reason = _job(manager.start, check, manager, check)
            if self.stop.is_set():
                return State.CHANGING
            if result != DONE:
                if result == CANCELED or self._is_overruled(vm, unit, manager):
                    return State.CHANGING  # what becomes of it is for the next look, which checks it again
                message = f"{vm.name}: on generation {ran.generation} it is not healthy: {reason}"
                self._record(Event.RESTART_FAILED, message, vm, ran, attempt)
                return self._fail(vm, attempt, reason, manager)
        took = self.monotonic() - began
        message = f"{vm.name}: runs generation {ran.generation}, restarted in {took:.1f} s"
        self._record(Event.RESTARTED, message + self._lacks(vm, manifest, unit), vm, ran, attempt)
        self.store.record_attempt(vm.name, None)
        return State.IN_STEP

    def _lacks(self, vm: VmConfig, manifest: Manifest, unit: UnitState) -> str:
        """What should have come of a restart beside the VM, and has not: for its record."""
        said = ""
        if self.observer.hint(vm, unit) is None:
            said += f"; {NOT_REPORTED}"
        if self.observer.evidence(vm, unit) is None and unit.is_active:
            # The generation that was current when systemd started the VM, or a newer one. The older of the
            # two is assumed: at worst the VM is restarted once more.
            self.store.assume(vm.name, Assumed(unit.invocation_id, manifest.digest, manifest.generation))
            said += "; no evidence of its start was kept: see journalctl -u " + vm.unit
        return said

    @staticmethod
    def _is_overruled(vm: VmConfig, before: UnitState, manager: SystemManager) -> bool:
        """Whether somebody has stopped or restarted a VM while its health was checked."""
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
        """Ask systemd for a restart; how it has ended."""
        unit = manager.unit(vm.unit) if unit is None else unit
        job = manager.try_restart if unit.is_active and not again else manager.restart_failed
        result, reason = _job(job, vm.unit, manager, "systemd's job")
        if result not in {DONE, CANCELED}:
            return Failed(reason, is_left_down=result == DEPENDENCY)
        # Where it was canceled, somebody else's job came in its place, and may do as well.
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
        """Put a VM back on what it ran before; safe to be interrupted and done again at any point."""
        if attempt.outcome is not Outcome.FAILED:
            # Before anything is put back: from then on no look seals what has failed anew.
            reason = attempt.reason or "it was down when its restart was interrupted"
            attempt = msgspec.structs.replace(attempt, outcome=Outcome.FAILED, reason=reason)
            self.store.record_attempt(vm.name, attempt)
        if self.observer.has_other_key():
            return State.CHANGING  # PID 1 would open nothing; the next look takes up the key, and goes on
        manifest = self.store.revert(vm.name, attempt.previous)
        reason = "the previous generation is there no more"
        if manifest is not None:
            unit = as_left(manager.unit(vm.unit), manager)
            if (unit.is_stopped and not is_left_down) or self._runs(vm, unit, manifest):
                reason = ""
            elif readiness.is_up(unit) and self.observer.obstacle(vm, manager):
                return State.REFUSED  # it is up; the way back is gone once it can be
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
        """Whether a restart of ours left the VM down or on old values; stopped by somebody is neither."""
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
        """Tell what was done under the operator's order that it carries out, or else under the change."""
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
    """Systemd's word for the result of a unit's job, and the same as a reason for a failure.

    The word is empty where systemd has refused the job. Raises `BusError` where it cannot be reached.
    """
    try:
        result = ask(unit)
    except BusError as error:
        manager.unit(unit)  # raises as well where systemd cannot be reached; else it has refused
        return "", str(error)
    return result, f"{what} ended with {result!r}"


def _is_retry(attempt: Attempt | None) -> bool:
    return attempt is not None and attempt.outcome is Outcome.RETRY
