# SPDX-License-Identifier: MIT
"""Everything about one VM at one moment, and what it says of a restart that the agent began."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from credferry.agent.config.units import AfterFails
from credferry.agent.reconcile.desired import Desired, Refused, are_of_one_key
from credferry.agent.reconcile.limits import Room, room_of
from credferry.agent.store.records import Outcome, Way
from credferry.launcher.handoff import Channel

if TYPE_CHECKING:
    from credferry.agent.config.model import VmConfig
    from credferry.agent.store.evidence import Evidence
    from credferry.agent.store.records import Assumed, Attempt, Owed, Pushed
    from credferry.agent.systemd.units import UnitState
    from credferry.launcher.handoff import Manifest, Stamp


_PENDING = {Outcome.RESTARTING, Outcome.RETRY, Outcome.UNPUSHED, Outcome.PUT_OFF}


NOT_REPORTED = (
    "its launcher has not reported this start: check that its hypervisor's command is credferry-launch"
)


@dataclass(frozen=True, slots=True)
class Observed:
    """Everything about one VM at one moment. ``unit`` is None if the agent did not ask systemd.

    ``evidence`` is root's record of what the unit's present invocation was started with. ``hint`` is the
    launcher's report of that start; another process could have forged it. ``pushed`` is what the agent has
    noted of pushes to this invocation. ``reported`` is the last start's report, if there is no ``hint``.
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
    reported: Stamp | None = None
    pushed: Pushed | None = None
    approved: str = ""
    """The digest that an operator last approved."""
    owed: Owed | None = None
    """The operator's unit that is still to run after a restart."""
    ran: Manifest | None = None
    """The generation that it runs, where a push depends on what has changed since; else None."""

    @property
    def room(self) -> Room:
        """The room that the VM's strings have at its next start, as far as is known."""
        may_run = self.unit is None or not self.unit.is_stopped
        return room_of(self.hint or self.reported, self.vm.delivery.channel, may_run=may_run)

    @property
    def is_in_doubt(self) -> bool:
        """Whether a push has no known end, so that it is not known what the guest holds."""
        return self.pushed is not None and self.pushed.asked > 0

    def ran_for(self, boot: float) -> float:
        """For how many seconds the VM has run what it runs. ``boot`` is now, in seconds since the boot."""
        if self.pushed is not None and self.pushed.moment:
            return max(0.0, boot - self.pushed.moment)
        return self.unit.active_seconds if self.unit is not None else 0.0

    @property
    def proved(self) -> Evidence | Pushed | None:
        """What it is proved to run: by its last push, else by its start; None if unknown or in doubt."""
        if self.pushed is not None:
            return None if self.pushed.asked else self.pushed
        return self.evidence

    @property
    def runs(self) -> Evidence | Pushed | Assumed | None:
        """What it runs, as far as is known: the last push, the evidence, or the recorded assumption.

        In doubt, this is what it ran before the push.
        """
        unit = self.unit
        if unit is None:
            return None
        known = [each for each in (self.pushed, self.evidence, self.assumed) if each]
        known = [each for each in known if each.invocation_id == unit.invocation_id]
        # A digest made with an earlier key of the host comes last.
        known.sort(key=lambda each: not self._is_of_present_key(each.digest))
        return known[0] if known else None

    def _is_of_present_key(self, digest: str) -> bool:
        present = self.desired.digest if isinstance(self.desired, Desired) else ""
        if not present and self.sealed is not None:
            present = self.sealed.digest
        return are_of_one_key(digest, present)


def not_reported(vm: VmConfig) -> str:
    """What is missing of the unit's present start, and where to look."""
    if vm.channel is Channel.DIRECTORY:
        return f"there is no evidence of this start: see journalctl -u {vm.unit}"
    return NOT_REPORTED


def launched(now: Observed, grace_over: bool) -> Evidence | Pushed | None:
    """What the present invocation runs, once its launcher has reported or its time to report is over."""
    return now.proved if now.hint is not None or grace_over else None


def is_down_by_us(now: Observed, grace_over: bool) -> bool:
    """Whether the agent's own restart left the VM down. False if somebody stopped the VM."""
    if now.attempt is None or now.unit is None or now.attempt.outcome is Outcome.HALTED:
        return False
    if now.attempt.way is Way.PUSH:
        return False
    if now.unit.is_flapping and now.hint is None and not grace_over:
        return True
    is_down = now.unit.active == "failed" or now.unit.sub == "auto-restart" or now.unit.is_left_down
    return not now.unit.has_job and is_down


def is_to_resume(now: Observed) -> bool:
    """Whether to try the recorded restart again: it never began, or there is nothing to roll back to."""
    attempt, unit = now.attempt, now.unit
    if attempt is None or unit is None or attempt.outcome is not Outcome.RESTARTING:
        return False
    if not attempt.previous:
        return True
    # systemd forgets the invocation of a unit that is down and that nothing refers to.
    return unit.is_left_down or (attempt.before != "" and attempt.before == unit.invocation_id)


def is_over(now: Observed, unit: UnitState, grace_over: bool) -> bool:
    """Whether the recorded restart or push has succeeded or is not due any more, or the VM was stopped.

    It is not due any more where the agent died in it and the VM has started since, on whatever is newer; or
    where it never began, and the VM runs what is published now, because its change was taken back.
    """
    if now.attempt is None or now.attempt.outcome not in _PENDING or unit.has_job:
        return False
    if unit.is_active:
        is_launched = now.hint is not None or grace_over
        if not is_launched or now.is_in_doubt or is_unproven(now):
            return False
        ends = {now.attempt.digest}
        if now.attempt.outcome is Outcome.RESTARTING:
            if now.attempt.before and has_started(now):
                return True
            if isinstance(now.desired, Desired):
                ends.add(now.desired.digest)
        return now.runs is not None and now.runs.digest in ends
    return unit.is_stopped


def has_started(now: Observed) -> bool:
    """Whether the VM is up, by a start after the agent recorded its restart."""
    attempt, unit = now.attempt, now.unit
    if attempt is None or attempt.way is not Way.RESTART or unit is None:
        return False
    return unit.is_active and attempt.before != unit.invocation_id


def came_of_attempt(now: Observed) -> Evidence | Pushed | None:
    """What the VM got by the recorded restart or push, or by a start after it; None if by neither."""
    attempt, proved, unit = now.attempt, now.proved, now.unit
    if attempt is None or proved is None or unit is None or not unit.is_active:
        return None
    # The digest says nothing of a restart: an operator may have ordered one onto what the VM runs.
    is_pushed = attempt.way is Way.PUSH and proved.digest == attempt.digest
    return proved if is_pushed or has_started(now) else None


def is_to_be_proved(now: Observed) -> bool:
    """Whether a restart counts only once its health check, or the operator's unit after it, succeeds."""
    is_owed = now.owed is not None and now.vm.units.after_fails is AfterFails.ROLLBACK
    return bool(now.vm.health) or is_owed


def is_unproven(now: Observed) -> bool:
    """Whether the agent's restart or push has worked so far, but the VM's health is not checked yet.

    Also where the VM came up on something newer than what the restart was for, or left no evidence.
    """
    attempt = now.attempt
    if attempt is None or attempt.outcome is not Outcome.RESTARTING or not is_to_be_proved(now):
        return False
    return has_started(now) or came_of_attempt(now) is not None


def must_prove(now: Observed, grace_over: bool) -> bool:
    """Whether the VM's health is to be checked now, whatever is published since."""
    is_launched = now.hint is not None or grace_over
    is_steady = now.unit is not None and not now.unit.is_changing
    return is_unproven(now) and is_launched and is_steady


def must_roll_back(now: Observed, grace_over: bool) -> bool:
    """Whether the agent's restart left the VM down, and a rollback is possible and not done yet.

    The rollback of a failed push leaves the VM as it is.
    """
    attempt = now.attempt
    if attempt is None or not attempt.previous or attempt.outcome is Outcome.ROLLED_BACK:
        return False
    if attempt.way is Way.PUSH and attempt.outcome is Outcome.FAILED:
        return True
    return is_down_by_us(now, grace_over)


def is_accepted(now: Observed, wanted: Desired) -> bool:
    """Whether ``wanted`` already passed the limits: it is sealed, and the VM runs nothing else."""
    sealed, proved = now.sealed, now.proved
    if sealed is None or sealed.digest != wanted.digest or not is_delivered_as(sealed, wanted, now.vm):
        return False
    return proved is None or proved.digest == wanted.digest


def is_delivered_as(sealed: Manifest, wanted: Desired, vm: VmConfig) -> bool:
    """Whether a generation reaches the guest in the way that the configuration wants now."""
    return sealed.delivery == wanted.delivery and sealed.is_live == vm.live


def running_digest(now: Observed, unit: UnitState, wanted: Desired) -> str | None:
    """Digest of what the present invocation runs; None if it is unknown or of another host key."""
    known = (now.pushed, now.evidence, now.assumed)
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
