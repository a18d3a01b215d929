# SPDX-License-Identifier: MIT
"""What is to be done, from what is: a pure function of published, sealed and running.

The agent closes two gaps and nothing else: published ≠ sealed → seal a new generation; sealed ≠ running,
and the unit is active → restart it. An event is only a reason to look; a lost one costs time, never a
rotation, and a needless one costs nothing.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from credferry.agent.config.model import Policy
from credferry.agent.reconcile.desired import Desired, Refused, are_of_one_key, over_limit
from credferry.agent.store.records import Assumed, Attempt, Outcome

if TYPE_CHECKING:
    from credferry.agent.config.model import VmConfig
    from credferry.agent.store.evidence import Evidence
    from credferry.agent.systemd.units import UnitState
    from credferry.launcher.handoff import Manifest, Stamp


NOT_REPORTED = (
    "its launcher has not reported this start: see that its hypervisor's command is credferry-launch"
)


@dataclass(frozen=True, slots=True)
class Observed:
    """Everything about one VM at one moment. ``unit`` is None when systemd was not asked.

    ``evidence`` is root's word for what the present invocation was started with. ``hint`` is what the
    launcher reported of it; others could have forged it.
    """

    vm: VmConfig
    desired: Desired | Refused
    sealed: Manifest | None
    unit: UnitState | None
    evidence: Evidence | None
    assumed: Assumed | None
    attempt: Attempt | None
    held: bool = False
    hint: Stamp | None = None

    @property
    def runs(self) -> Evidence | Assumed | None:
        """What the present invocation was started with: by evidence, or else as it was assumed."""
        unit = self.unit
        if unit is None:
            return None
        known = [each for each in (self.evidence, self.assumed) if each]
        known = [each for each in known if each.invocation_id == unit.invocation_id]
        # A digest of an earlier key of the host that is not known with the present one comes last.
        known.sort(key=lambda each: not self._is_of_present_key(each.digest))
        return known[0] if known else None

    def _is_of_present_key(self, digest: str) -> bool:
        present = self.desired.digest if isinstance(self.desired, Desired) else ""
        if not present and self.sealed is not None:
            present = self.sealed.digest
        return are_of_one_key(digest, present)


class State(enum.StrEnum):
    """Where a VM stands."""

    IN_STEP = "in step"
    STOPPED = "stopped"
    """Not running; its next start gets the current generation."""
    RESTART_DUE = "restart due"
    SEAL_DUE = "seal due"
    """A new generation is to be sealed, and no restart is known to be needed."""
    CHANGING = "changing"
    """Its unit is on its way up or down, or its launcher has not reported yet; looked at again shortly."""
    REFUSED = "refused"
    FAILED = "failed"
    """The last change could not be rolled out; it is left alone until it changes again, or a retry."""
    HELD = "held"
    IGNORED = "ignored"
    HALTED = "halted"
    WAITING = "waiting"
    """Its restart is due, and not yet: its window, its rate, its turn."""
    NO_UNIT = "no unit"


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to be done about one VM, and why not more."""

    vm: VmConfig
    state: State
    seal: Desired | None = None
    restart: bool = False
    roll_back: bool = False
    prove: bool = False
    """Whether a VM that was restarted is still to be found healthy."""
    forget: bool = False
    """Whether the noted restart is over: it went well, or somebody has stopped the VM since."""
    assume: Assumed | None = None
    reasons: tuple[str, ...] = field(default=())
    look_again: bool = False
    wait_seconds: float = 0.0
    """After how many seconds a restart that has to wait is to be thought of again."""
    unready: bool = False
    """Whether a restart is due and left out, as the VM would not start again."""

    @property
    def needs_rollout(self) -> bool:
        """Whether something is to be done to the running VM."""
        return self.restart or self.roll_back or self.prove


def decide(now: Observed, *, grace_over: bool = True) -> Decision:
    """What to do about one VM.

    ``grace_over``: whether the launcher has had time enough to report an active unit's start.
    """
    vm = now.vm
    match now.desired:
        case Refused(reasons, passing):
            return Decision(
                vm,
                State.REFUSED,
                roll_back=_must_roll_back(now, grace_over),
                reasons=reasons,
                look_again=passing,
            )
        case Desired() as wanted:
            pass
    limit = None
    if not _is_accepted(now, wanted):
        limit = over_limit(vm, wanted, now.hint.other_oem_bytes if now.hint is not None else 0)
    if limit is not None:
        return Decision(vm, State.REFUSED, roll_back=_must_roll_back(now, grace_over), reasons=(limit,))
    stale = now.sealed is None or now.sealed.digest != wanted.digest
    # The delivery alone differing is written for the next start, and restarts nothing: the guest would
    # get the same.
    seal = wanted if stale or now.sealed is None or now.sealed.delivery != wanted.delivery else None
    attempt = now.attempt if now.attempt is not None and now.attempt.digest == wanted.digest else None
    if attempt is not None and attempt.outcome in {Outcome.FAILED, Outcome.ROLLED_BACK} and attempt.previous:
        seal = None  # what failed is not made current again
    if now.unit is None:
        return Decision(vm, State.SEAL_DUE if seal else State.IN_STEP, seal=seal)
    decision = _running(now, wanted, seal, now.unit, grace_over=grace_over)
    return replace(decision, forget=_is_over(now, now.unit, grace_over))


def _is_accepted(now: Observed, wanted: Desired) -> bool:
    """Whether the limits were seen to hold: it is sealed, and nothing else runs."""
    sealed, evidence = now.sealed, now.evidence
    if sealed is None or sealed.digest != wanted.digest or sealed.delivery != wanted.delivery:
        return False
    return evidence is None or evidence.digest == wanted.digest


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
    is_down = _is_down_by_us(now, grace_over)
    if not is_down and unit.is_changing:
        return Decision(vm, State.CHANGING, seal=seal, look_again=True)
    if is_down or not unit.is_active:
        # Down since a restart of ours failed, and there is something newer: that may start.
        # So may what was down for the same, where an operator says so.
        last = now.attempt if is_down else None
        is_other = last is not None and (last.digest != wanted.digest or last.outcome is Outcome.RETRY)
        due = is_other or (is_down and _is_not_begun(now))
        return Decision(vm, State.RESTART_DUE if due else State.STOPPED, seal=seal, restart=due)
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
    """What to do about a VM that is up."""
    vm = now.vm
    assume = None
    if running is None:
        # No evidence was kept of this start, or it is of another key of the host. A start that keeps
        # evidence has done so by the time that the unit is active, so none will come. The VM has what is
        # current now, before anything newer is sealed: that is written down.
        running = now.sealed.digest if now.sealed is not None else wanted.digest
        assume = Assumed(unit.invocation_id, running, now.sealed.generation if now.sealed is not None else 0)
    if now.hint is None and not grace_over:
        return Decision(vm, State.CHANGING, seal=seal, assume=assume, look_again=True)
    if running == wanted.digest:
        if _is_unproven(now):
            return Decision(vm, State.CHANGING, seal=seal, prove=True)
        state = State.SEAL_DUE if seal else State.IN_STEP
        reasons = (NOT_REPORTED,) if now.hint is None else ()
        return Decision(vm, state, seal=seal, assume=assume, reasons=reasons)
    if vm.policy is Policy.IGNORE:
        return Decision(vm, State.IGNORED, seal=seal, assume=assume)
    if vm.policy is Policy.HOLD or now.held:
        reason = "by its policy" if vm.policy is Policy.HOLD else "by an operator"
        return Decision(vm, State.HELD, seal=seal, assume=assume, reasons=(reason,))
    if not unit.keeps_evidence:
        return Decision(vm, State.REFUSED, seal=seal, assume=assume, reasons=(_no_evidence(vm),))
    return Decision(vm, State.RESTART_DUE, seal=seal, restart=True, assume=assume)


def _no_evidence(vm: VmConfig) -> str:
    return (
        f"{vm.unit} keeps no evidence of what it is started with, so nobody could tell what came of its "
        "restart: renew its drop-in by the commands that credferry doctor prints"
    )


def _after_a_failure(
    now: Observed, wanted: Desired, seal: Desired | None, running: str | None, *, grace_over: bool
) -> Decision | None:
    """What follows from an earlier rollout onto the same digest; None for nothing."""
    attempt = now.attempt
    if attempt is None or attempt.digest != wanted.digest:
        return None
    # Only a launch that evidence was kept of tells that it has come right since, and not even that where the
    # VM was found unhealthy.
    is_unhealthy = attempt.outcome is Outcome.FAILED and now.vm.health
    if _launched(now, grace_over) is not None and running == wanted.digest and not is_unhealthy:
        return None
    is_down = _is_down_by_us(now, grace_over)
    match attempt.outcome:
        case Outcome.HALTED:
            return Decision(now.vm, State.HALTED, seal=seal, reasons=(attempt.reason,))
        case Outcome.RESTARTING if not is_down or _is_not_begun(now):
            return None
        case Outcome.RESTARTING:
            reasons: tuple[str, ...] = ("it was down when its restart was interrupted",)
            return Decision(now.vm, State.FAILED, roll_back=attempt.previous > 0, reasons=reasons)
        case Outcome.FAILED:
            return Decision(now.vm, State.FAILED, roll_back=attempt.previous > 0, reasons=(attempt.reason,))
        case Outcome.ROLLED_BACK:
            state = State.HELD if attempt.by_operator and not is_down else State.FAILED
            return Decision(now.vm, state, reasons=(attempt.reason,))
        case Outcome.RETRY:
            return None


def _launched(now: Observed, grace_over: bool) -> Evidence | None:
    """What the present invocation runs, once its launcher has reported or has had time enough to."""
    return now.evidence if now.hint is not None or grace_over else None


def _is_down_by_us(now: Observed, grace_over: bool) -> bool:
    """Whether the VM is down since a restart of ours, and not by somebody's wish."""
    if now.attempt is None or now.unit is None or now.attempt.outcome is Outcome.HALTED:
        return False
    if now.unit.is_flapping and now.hint is None and not grace_over:
        return True
    is_down = now.unit.active == "failed" or now.unit.sub == "auto-restart" or now.unit.is_left_down
    return not now.unit.has_job and is_down


def _is_not_begun(now: Observed) -> bool:
    """Whether the restart that was noted never came to be: the VM is as it was before it."""
    attempt, unit = now.attempt, now.unit
    if attempt is None or unit is None or attempt.outcome is not Outcome.RESTARTING:
        return False
    # systemd forgets the invocation of a unit that is down and that nobody asks for.
    return unit.is_left_down or (attempt.before != "" and attempt.before == unit.invocation_id)


def _is_over(now: Observed, unit: UnitState, grace_over: bool) -> bool:
    """Whether a restart that was noted as begun is known to have ended well, or was ended by a stop."""
    if now.attempt is None or now.attempt.outcome not in {Outcome.RESTARTING, Outcome.RETRY} or unit.has_job:
        return False
    if unit.is_active:
        is_launched = now.hint is not None or grace_over
        is_on_it = is_launched and now.runs is not None and now.runs.digest == now.attempt.digest
        return is_on_it and not _is_unproven(now)
    return unit.is_stopped


def _is_unproven(now: Observed) -> bool:
    """Whether a restart of ours has gone well so far, and the VM was not found healthy yet."""
    attempt, evidence = now.attempt, now.evidence
    if attempt is None or evidence is None or not now.vm.health:
        return False
    return attempt.outcome is Outcome.RESTARTING and evidence.digest == attempt.digest


def _must_roll_back(now: Observed, grace_over: bool) -> bool:
    """Whether the VM is down by us, has something to go back to, and was not put back yet."""
    attempt = now.attempt
    if attempt is None or not attempt.previous or attempt.outcome is Outcome.ROLLED_BACK:
        return False
    return _is_down_by_us(now, grace_over)


def running_digest(now: Observed, unit: UnitState, wanted: Desired) -> str | None:
    """What the present invocation was started with; what is another's, or another key's, tells nothing."""
    known = (now.evidence, now.assumed)
    return next(
        (
            each.digest
            for each in known
            if each
            and each.invocation_id == unit.invocation_id
            and are_of_one_key(each.digest, wanted.digest)
        ),
        None,
    )
