# SPDX-License-Identifier: MIT
"""Decides what to do about a VM: a pure function of what is published, sealed and running.

The agent closes two gaps and nothing else: published ≠ sealed → seal a new generation; sealed ≠ running,
and the unit is active → push to its guest, or restart it. An event only triggers a check. If an event is
lost, the next check still finds the change. An event without a change does no harm.

One job: the decision about one VM. One place distinguishes all states, so no two places can disagree.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from credferry.agent.config.model import OnLiveFailure, Policy
from credferry.agent.reconcile.desired import Desired, Refused, Unpaired
from credferry.agent.reconcile.limits import over_limit
from credferry.agent.reconcile.observed import (
    has_started,
    is_accepted,
    is_delivered_as,
    is_down_by_us,
    is_over,
    is_to_be_proved,
    is_to_resume,
    is_unproven,
    launched,
    must_prove,
    must_roll_back,
    not_reported,
    running_digest,
)
from credferry.agent.reconcile.way import choose
from credferry.agent.store.records import Assumed, Outcome, Way

if TYPE_CHECKING:
    from credferry.agent.config.model import VmConfig
    from credferry.agent.reconcile.observed import Observed
    from credferry.agent.systemd.units import UnitState


class State(enum.StrEnum):
    """State of a VM."""

    IN_STEP = "in step"
    STOPPED = "stopped"
    """Not running; its next start gets the current generation."""
    RESTART_DUE = "restart due"
    PUSH_DUE = "push due"
    SEAL_DUE = "seal due"
    """The agent must seal a new generation. It does not know of a restart that is needed."""
    CHANGING = "changing"
    """Its unit is starting or stopping, or its launcher has not reported yet. The agent checks soon."""
    REFUSED = "refused"
    FAILED = "failed"
    """The last rollout failed. The agent waits until the secrets change or an operator retries."""
    HELD = "held"
    """A change is sealed and waits until an operator acts: on a hold, or because of the VM's policy."""
    APPROVAL = "waiting for approval"
    """A change is sealed, and the VM's policy wants an operator to approve it."""
    ROLLED_BACK = "rolled back"
    """An operator ordered it. The VM keeps the earlier secrets until they change or an operator retries."""
    IGNORED = "ignored"
    HALTED = "halted"
    WAITING = "waiting"
    """Its restart or push is due but must wait, for example for its window or its rate limit."""
    NO_UNIT = "no unit"


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do about one VM, and the reasons for doing no more."""

    vm: VmConfig
    state: State
    seal: Desired | None = None
    way: Way | None = None
    """How the agent brings the sealed generation to the VM now; None if it does not."""
    why: str = ""
    """Why ``way`` is a restart, though the VM is configured as live; else empty."""
    roll_back: bool = False
    prove: bool = False
    """Whether the restarted VM still has to pass its health check. What ``way`` says comes first."""
    run_after: bool = False
    """Whether the operator's unit after a restart is to run now. Only the pacing sets this."""
    forget: bool = False
    """Whether the recorded restart or push is over: it succeeded, or the VM has been stopped since."""
    assume: Assumed | None = None
    reasons: tuple[str, ...] = field(default=())
    look_again: bool = False
    wait_seconds: float = 0.0
    """Seconds after which the agent checks again whether a waiting restart or push may begin."""
    awaits_slot: bool = False
    """Whether its restart or push waits for nothing but a slot of its fleet. Only the pacing sets this."""
    detail: str = ""
    """More about ``reasons`` that may change while the VM waits: it is shown, and not recorded."""
    unready: bool = False
    """Whether the agent withholds a restart, push or rollback because PID 1 would open nothing for it."""

    @property
    def restart(self) -> bool:
        """Whether the agent restarts the VM now."""
        return self.way is Way.RESTART

    @property
    def push(self) -> bool:
        """Whether the agent pushes to the VM's guest now."""
        return self.way is Way.PUSH

    @property
    def shown(self) -> tuple[str, ...]:
        """The reasons and the detail, for people."""
        return (*self.reasons, self.detail) if self.detail else self.reasons

    @property
    def needs_work(self) -> bool:
        """Whether the rollout has anything to do, be it only a unit after a restart."""
        return self.needs_rollout or self.run_after

    @property
    def needs_rollout(self) -> bool:
        """Whether the rollout has work to do: a restart, a push, a rollback or a health check."""
        return self.way is not None or self.roll_back or self.prove


def decide(now: Observed, *, grace_over: bool = True) -> Decision:
    """What to do about one VM. ``grace_over``: whether its launcher has had the time to report its start."""
    decision = _toward(now, grace_over=grace_over)
    if now.unit is None:
        return decision
    # What the agent has begun comes to its end, also while nothing more can be done, or must wait.
    # Without a generation that opens, the rollout has nothing to check a VM for.
    prove = not decision.roll_back and now.sealed is not None and must_prove(now, grace_over)
    return replace(decision, prove=prove, forget=is_over(now, now.unit, grace_over))


def _kept(now: Observed, state: State, reasons: tuple[str, ...], *, grace_over: bool) -> Decision:
    """What to do about a VM for which nothing can be sealed. It keeps what it has."""
    # It may be up by a restart of the agent, whose end is not known yet.
    look_again = has_started(now) and now.hint is None and not grace_over
    roll_back = must_roll_back(now, grace_over)
    return Decision(now.vm, state, roll_back=roll_back, reasons=reasons, look_again=look_again)


def _toward(now: Observed, *, grace_over: bool) -> Decision:
    """What to do to bring a VM to what is published."""
    vm = now.vm
    match now.desired:
        case Unpaired(reasons):
            return _kept(now, State.WAITING, reasons, grace_over=grace_over)
        case Refused(reasons, passing):
            kept = _kept(now, State.REFUSED, reasons, grace_over=grace_over)
            return replace(kept, look_again=passing or kept.look_again)
        case Desired() as wanted:
            pass
    limit = None
    if not is_accepted(now, wanted):
        limit = over_limit(vm, wanted, now.room)
    if limit is not None:
        reasons = (f"{limit.message}: {limit.hint}",)
        return _kept(now, State.REFUSED, reasons, grace_over=grace_over)
    stale = now.sealed is None or now.sealed.digest != wanted.digest
    # If only the delivery differs, or whether the VM is live, the agent seals it for the next start and
    # restarts nothing: the guest would get the same values.
    seal = wanted if stale or now.sealed is None or not is_delivered_as(now.sealed, wanted, vm) else None
    attempt = now.attempt if now.attempt is not None and now.attempt.digest == wanted.digest else None
    if attempt is not None and attempt.outcome in {Outcome.FAILED, Outcome.ROLLED_BACK} and attempt.previous:
        seal = None  # do not make a failed generation current again
    if now.unit is None:
        return Decision(vm, State.SEAL_DUE if seal else State.IN_STEP, seal=seal)
    return _running(now, wanted, seal, now.unit, grace_over=grace_over)


def _running(
    now: Observed, wanted: Desired, seal: Desired | None, unit: UnitState, *, grace_over: bool
) -> Decision:
    vm = now.vm
    running = running_digest(now, unit, wanted)
    if not unit.is_loaded:
        return Decision(vm, State.NO_UNIT, seal=seal, reasons=(f"systemd has no unit {vm.unit}",))
    failed = _after_a_failure(now, wanted, seal, running, grace_over=grace_over)
    if failed is not None:
        return failed
    is_down = is_down_by_us(now, grace_over)
    if not is_down and unit.is_changing:
        return Decision(vm, State.CHANGING, seal=seal, look_again=True)
    if is_down or not unit.is_active:
        # If the agent's own restart left the VM down, it tries again in three cases: other secrets are
        # published, an operator orders a retry, or the recorded restart was interrupted and must go on.
        last = now.attempt if is_down else None
        is_other = last is not None and (last.digest != wanted.digest or last.outcome is Outcome.RETRY)
        due = is_other or (is_down and is_to_resume(now))
        state = State.RESTART_DUE if due else State.STOPPED
        return Decision(vm, state, seal=seal, way=Way.RESTART if due else None)
    return _active(now, wanted, seal, unit, running, grace_over=grace_over)


def _active(
    now: Observed,
    wanted: Desired,
    seal: Desired | None,
    unit: UnitState,
    running: str | None,
    *,
    grace_over: bool,
) -> Decision:
    """What to do about a VM that is running."""
    vm = now.vm
    assume = None
    if running is None:
        # There is no evidence of this start, or it is of another key of the host. A start writes its
        # evidence before the unit becomes active, so no evidence will come later. The agent assumes that the
        # VM runs the current generation, and records this before it seals a newer one.
        running = now.sealed.digest if now.sealed is not None else wanted.digest
        assume = Assumed(unit.invocation_id, running, now.sealed.generation if now.sealed is not None else 0)
    if now.hint is None and not grace_over:
        return Decision(vm, State.CHANGING, seal=seal, assume=assume, look_again=True)
    if running == wanted.digest and not now.is_in_doubt:
        if is_unproven(now):
            return Decision(vm, State.CHANGING, seal=seal)
        state = State.SEAL_DUE if seal else State.IN_STEP
        reasons = (not_reported(vm),) if now.hint is None else ()
        return Decision(vm, state, seal=seal, assume=assume, reasons=reasons)
    if vm.policy is Policy.IGNORE:
        return Decision(vm, State.IGNORED, seal=seal, assume=assume)
    if vm.policy is Policy.HOLD or now.held:
        reason = "by its policy" if vm.policy is Policy.HOLD else "by an operator"
        return Decision(vm, State.HELD, seal=seal, assume=assume, reasons=(reason,))
    # While something else is sealed than what was approved, a restart would be onto that.
    if vm.policy is Policy.APPROVE and (seal is not None or now.approved != wanted.digest):
        return Decision(vm, State.APPROVAL, seal=seal, assume=assume, reasons=(_how_to_approve(now, seal),))
    if not unit.keeps_evidence:
        return Decision(vm, State.REFUSED, seal=seal, assume=assume, reasons=(_no_evidence(vm),))
    chosen = choose(now, wanted.digest, wanted.entries)
    state = State.PUSH_DUE if chosen.way is Way.PUSH else State.RESTART_DUE
    return Decision(vm, state, seal=seal, way=chosen.way, why=chosen.why, assume=assume)


def _how_to_approve(now: Observed, seal: Desired | None) -> str:
    """The command that approves what is sealed. What is yet to be sealed cannot be approved."""
    if seal is not None or now.sealed is None:
        return "its change is about to be sealed"
    return f"approve it with: credferry approve {now.vm.name} --run {now.sealed.run}"


def _no_evidence(vm: VmConfig) -> str:
    return (
        f"{vm.unit} keeps no evidence of its starts, so the agent could not tell whether a restart "
        "succeeded: renew its drop-in with the commands that credferry doctor prints"
    )


def _after_a_failure(
    now: Observed, wanted: Desired, seal: Desired | None, running: str | None, *, grace_over: bool
) -> Decision | None:
    """Decision that an earlier rollout of the same digest requires; None if it requires none."""
    attempt = now.attempt
    if attempt is None or attempt.digest != wanted.digest:
        return None
    # Only a launch with evidence proves that the VM has recovered since. If the VM failed and has a health
    # check, even that is no proof.
    is_unhealthy = attempt.outcome is Outcome.FAILED and is_to_be_proved(now)
    if launched(now, grace_over) is not None and running == wanted.digest and not is_unhealthy:
        return None
    is_down = is_down_by_us(now, grace_over)
    match attempt.outcome:
        case Outcome.HALTED:
            return Decision(now.vm, State.HALTED, seal=seal, reasons=(attempt.reason,))
        case Outcome.RESTARTING if not is_down or is_to_resume(now):
            return None
        case Outcome.RESTARTING:
            reasons: tuple[str, ...] = ("it was down when its restart was interrupted",)
            return Decision(now.vm, State.FAILED, roll_back=True, reasons=reasons)
        case Outcome.FAILED:
            return Decision(now.vm, State.FAILED, roll_back=attempt.previous > 0, reasons=(attempt.reason,))
        case Outcome.ROLLED_BACK:
            state = State.ROLLED_BACK if attempt.by_operator and not is_down else State.FAILED
            return Decision(now.vm, state, reasons=(attempt.reason,))
        case Outcome.UNPUSHED if (
            now.unit is not None
            and attempt.before == now.unit.invocation_id
            and now.vm.on_live_failure is OnLiveFailure.HOLD
        ):
            return Decision(now.vm, State.FAILED, seal=seal, reasons=(attempt.reason,))
        case Outcome.RETRY | Outcome.UNPUSHED | Outcome.PUT_OFF:
            return None
