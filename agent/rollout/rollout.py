# SPDX-License-Identifier: MIT
"""Decides for one VM at a time what to do next: push, restart, check health, roll back, halt, or nothing.

Right before each step the agent decides again, under the VM's lock. So two agents on one store never
restart a VM twice. It records a restart or a push before it asks systemd, so a crash loses nothing.

One job: the next step of one VM.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from credferry.agent.audit.events import Event
from credferry.agent.errors import OrderError, UnlistableError
from credferry.agent.reconcile import readiness
from credferry.agent.reconcile.decision import Decision, State
from credferry.agent.reconcile.desired import Desired
from credferry.agent.reconcile.observed import came_of_attempt
from credferry.agent.reconcile.way import choose
from credferry.agent.rollout import preconditions
from credferry.agent.rollout.recording import record
from credferry.agent.rollout.rollback import generation_before
from credferry.agent.rollout.slots import Asking, Denied, Free
from credferry.agent.store.evidence import Evidence
from credferry.agent.store.failures import StoreFailures
from credferry.agent.store.locks import rollout_lock
from credferry.agent.store.records import Attempt, Outcome, Way

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from credferry.agent.audit.writer import Audit
    from credferry.agent.config.model import Config, VmConfig
    from credferry.agent.reconcile.observed import Observed
    from credferry.agent.reconcile.observer import Look, Observer
    from credferry.agent.rollout.pacing import RestartPolicyGate
    from credferry.agent.rollout.pusher import Pusher
    from credferry.agent.rollout.restarter import Restarter
    from credferry.agent.rollout.rollback import Rollback
    from credferry.agent.rollout.slots import Slots
    from credferry.agent.store.generations import Store
    from credferry.agent.systemd.units import SystemManager
    from credferry.launcher.handoff import Manifest

_OVERTAKEN_MAX = 3


@dataclass(frozen=True, slots=True)
class Rollout:
    """Restarts VMs and pushes to them. Setting ``stop`` ends any wait early; the next check finishes."""

    config: Config
    store: Store
    observer: Observer
    audit: Audit
    pacer: RestartPolicyGate
    restarter: Restarter
    pusher: Pusher
    rollback: Rollback
    stop: threading.Event = field(default_factory=threading.Event)
    monotonic: Callable[[], float] = time.monotonic
    _overtaken: dict[str, int] = field(default_factory=dict)
    """How many times in a row newer secrets were published right before the restart."""
    _ended: dict[str, Attempt | None] = field(default_factory=dict)
    """By VM: the attempt whose end is in the audit, and whose record could not be removed yet."""

    def restart(self, name: str, manager: SystemManager) -> State:
        """Check a VM again, restart it or push to it if it still needs that, and return its final state.

        The rollout of a change stops at the first VM that fails. The VMs that are not restarted yet are
        halted. Raises `BusError`, `StoreError`.
        """
        vm = self.config.vm(name)
        with self._at_work(name):
            look = self.pacer.hold_back(self.observer.look_in_full(vm, manager))
            decision, observed = look.decisions[0], look.observed[0]
            attempt, manifest = observed.attempt, self.store.current(name)
            if decision.roll_back and attempt is not None:
                with self.pacer.pause.turn(name):
                    return self.rollback.roll_back(vm, attempt, manager)
            is_to_prove = decision.prove and decision.way is None
            if is_to_prove and attempt is not None and manifest is not None and observed.unit is not None:
                began = self.monotonic()
                # A newer one may be sealed by now, and the start may have left no evidence.
                with suppress(UnlistableError):  # the current one stands for it
                    number = self.store.find(name, attempt.digest, 0)
                    manifest = self.store.generation(name, number) or manifest
                with self.pacer.pause.turn(name):
                    return self.restarter.check_health(
                        vm, manifest, attempt, manager, began=began, unit=observed.unit
                    )
            if decision.way is None and decision.run_after:
                self.restarter.around.after(vm, manager)
                return decision.state
            if (
                decision.way is None
                or manifest is None
                or self._is_overtaken(vm, decision)
                or _is_unsealed(decision, observed, manifest)
            ):
                return decision.state
            is_up = observed.unit is not None and observed.unit.is_active
            # Do not halt a VM that the agent's restart left down: it would stay down because of another VM.
            failed = self._failed_for(manifest.run, vm) if is_up and not _is_retry(attempt) else ""
            if failed:
                return self._halt(vm, manifest, failed, generation_before(self.store, observed))
            order = attempt.order if attempt is not None and _is_retry(attempt) else ""
            # The look has judged the start, unless another generation was about to be sealed.
            if decision.seal and self.observer.obstacle(vm, manager, decision.way, observed.unit):
                return State.REFUSED  # the next check reports why
            turn = self._claim(vm, manifest.run) if is_up else self.pacer.pause.turn(name)
            if turn is None:
                return State.WAITING
            with turn:
                if decision.way is Way.PUSH:
                    # If a restart must follow, the next check decides when.
                    return self.pusher.push(vm, manifest, observed, manager, order=order) or State.CHANGING
                previous = generation_before(self.store, observed)
                return self.restarter.restart(vm, manifest, previous, manager, observed.unit, order=order)

    def _claim(self, vm: VmConfig, run: str) -> AbstractContextManager[None] | None:
        """The turn of a VM that is up; None if it has to wait."""
        if not self.slots.claim(vm, run):
            return None  # the fleet was asked, and a later check finds its answer
        return self.pacer.pause.claim(vm.name)  # None: another thread has just begun with another VM

    def rotate(
        self,
        name: str,
        manager: SystemManager,
        since: float,
        order: str,
        stands: Callable[[], bool] = lambda: True,
        *,
        way: Way = Way.PUSH,
        with_slot: bool = True,
    ) -> State | None:
        """Bring a running VM its sealed generation, on an operator's order. ``way``: a push, if it is live.

        Windows, rates and turns do not apply. ``since`` is the monotonic time of the order: a restart after
        it also fulfils the order. ``order`` is the run id for the audit records. ``stands`` says whether the
        order is still valid. Without ``with_slot``, the VM needs no slot of its fleet. Returns None if the
        agent must seal newer secrets first, or has just asked for a slot. Raises `OrderError`, `BusError`,
        `StoreError`.
        """
        vm = self.config.vm(name)
        with self._at_work(name):
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
            if self.monotonic() - up_for > since and is_on_it and not observed.is_in_doubt:
                return State.IN_STEP
            if with_slot and not self._has_slot(vm, order):
                return None
            with self.pacer.pause.turn(name):
                is_live = choose(observed, manifest.digest, manifest.credentials).way is Way.PUSH
                if way is Way.PUSH and is_live:
                    self._require_ready(vm, manager, Way.PUSH)
                    state = self.pusher.push(vm, manifest, observed, manager, order=order)
                    if state is not None:
                        return state
                self._require_ready(vm, manager)
                previous = generation_before(self.store, observed)
                return self.restarter.restart(vm, manifest, previous, manager, observed.unit, order=order)

    def roll_back(
        self,
        name: str,
        manager: SystemManager,
        order: str,
        stands: Callable[[], bool] = lambda: True,
        *,
        with_slot: bool = True,
    ) -> State | None:
        """Roll a VM back to the generation before its current one, on an operator's order.

        The VM stays there until its secrets change or an operator retries. ``order`` is the run id for the
        audit records. ``stands`` says whether the order is still valid. Without ``with_slot``, the VM needs
        no slot of its fleet. Returns None if the agent must first seal newer secrets, or has just asked for
        a slot. Raises `OrderError`, `BusError`, `StoreError`.
        """
        vm = self.config.vm(name)
        with self._at_work(name):
            if not stands():
                return State.CHANGING
            look = self.observer.look_or_refuse([vm], manager)
            decision, observed = look.decisions[0], look.observed[0]
            manifest, previous = preconditions.to_roll_back(self.store, observed)
            if self._is_overtaken(vm, decision):
                return None
            if readiness.is_up(observed.unit):
                self._require_ready(vm, manager)
                if with_slot and not self._has_slot(vm, order):
                    return None
                self.restarter.around.require(vm, observed.unit, manager)
            wanted = observed.desired.digest if isinstance(observed.desired, Desired) else manifest.digest
            attempt = Attempt(
                wanted,
                Outcome.FAILED,
                previous=previous.generation,
                run=manifest.run,
                by_operator=True,
                order=order,
                ran=generation_before(self.store, observed),
            )
            # Record first: after a crash, the next run of the agent continues from this record.
            self.store.record_attempt(name, attempt)
            with self.pacer.pause.turn(name):
                return self.rollback.roll_back(vm, attempt, manager)

    @property
    def slots(self) -> Slots:
        """Slots of the fleet."""
        return self.pacer.slots

    @contextmanager
    def _at_work(self, name: str) -> Iterator[None]:
        """Hold a VM's lock. After it, a slot of the fleet that the VM has may be given back."""
        with self._lock(name):
            try:
                yield
            finally:
                self.slots.ended(name)

    def _has_slot(self, vm: VmConfig, order: str) -> bool:
        """Whether an order may go on; False while the engine is being asked. Raises `OrderError`."""
        match self.slots.ask_once(vm, order):
            case Denied(reason, detail):
                more = f"; {detail}" if detail else ""
                raise OrderError(
                    "NoSlot",
                    f"{vm.name}: its order would have to wait {reason}{more}",
                    hint="give it again later, or give it with --without-slot",
                )
            case Asking():
                return False
            case Free():
                return True

    def _require_ready(self, vm: VmConfig, manager: SystemManager, way: Way = Way.RESTART) -> None:
        """Raises `OrderError` if the running VM would not start again, or a push to it would fail."""
        if obstacle := self.observer.obstacle(vm, manager, way):
            what = "not restarted, because it would not start again"
            if way is Way.PUSH:
                what = "nothing is pushed, because that would fail"
            raise OrderError(
                "NotReady",
                f"{vm.name}: {what}: {obstacle}",
                hint="correct that first; see credferry doctor",
            )

    def _is_overtaken(self, vm: VmConfig, decision: Decision) -> bool:
        """Whether the agent must seal newer secrets first. At most ``_OVERTAKEN_MAX`` times in a row."""
        times = self._overtaken.pop(vm.name, 0)
        if decision.seal is None or times >= _OVERTAKEN_MAX:
            return False
        self._overtaken[vm.name] = times + 1
        return True

    def forget_ended(self, look: Look) -> None:
        """Clear the records of rollouts that ended while the agent was not watching.

        Raises `StoreError`, of one VM only after the others.
        """
        failures = StoreFailures()
        for decision, observed in zip(look.decisions, look.observed, strict=True):
            if decision.forget:
                with failures.kept():
                    self._forget(decision.vm, observed)
        failures.raise_first()

    def _forget(self, vm: VmConfig, observed: Observed) -> None:
        # Skip a VM that another thread or process is working on: its record is not over.
        with self._lock(vm.name, wait=False) as had:
            if not had or self.store.attempt(vm.name) != observed.attempt:
                return
            got = came_of_attempt(observed)
            if got is not None and self._ended.get(vm.name) != observed.attempt:
                # Report what the VM was started on: a newer generation may be sealed by now.
                message = f"{vm.name}: runs generation {got.generation}"
                event = Event.RESTARTED if isinstance(got, Evidence) else Event.PUSHED
                record(self.audit, event, message, vm, got, observed.attempt)
                self._ended[vm.name] = observed.attempt
            self.pacer.pause.note(vm.name)  # it may have ended just now
            self.store.record_attempt(vm.name, None)
            self._ended.pop(vm.name, None)

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

    def _halt(self, vm: VmConfig, manifest: Manifest, failed: str, previous: int) -> State:
        reason = f"because the restart of {failed} for the same change failed"
        record(self.audit, Event.HALTED, f"{vm.name}: halted, {reason}", vm, manifest)
        attempt = Attempt(
            manifest.digest, Outcome.HALTED, reason, previous=previous, run=manifest.run, halted_for=failed
        )
        self.store.record_attempt(vm.name, attempt)
        return State.HALTED


def _is_unsealed(decision: Decision, now: Observed, manifest: Manifest) -> bool:
    """Whether a VM that is up runs what is sealed, and its change could not be sealed."""
    is_up = now.unit is not None and now.unit.is_active
    runs = now.runs.digest if now.runs is not None and not now.is_in_doubt else ""
    return decision.seal is not None and is_up and runs == manifest.digest


def _is_retry(attempt: Attempt | None) -> bool:
    return attempt is not None and attempt.outcome is Outcome.RETRY
