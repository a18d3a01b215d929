# SPDX-License-Identifier: MIT
"""Everything about one VM at one moment, and what it says of a restart that the agent began."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from credferry.agent.reconcile.desired import Desired, Refused, are_of_one_key
from credferry.agent.store.records import Outcome

if TYPE_CHECKING:
    from credferry.agent.config.model import VmConfig
    from credferry.agent.store.evidence import Evidence
    from credferry.agent.store.records import Assumed, Attempt
    from credferry.agent.systemd.units import UnitState
    from credferry.launcher.handoff import Manifest, Stamp


@dataclass(frozen=True, slots=True)
class Observed:
    """Everything about one VM at one moment. ``unit`` is None if the agent did not ask systemd.

    ``evidence`` is root's record of what the unit's present invocation was started with. ``hint`` is the
    launcher's report of that start; another process could have forged it.
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
        """What the present invocation was started with: the evidence, or else the recorded assumption."""
        unit = self.unit
        if unit is None:
            return None
        known = [each for each in (self.evidence, self.assumed) if each]
        known = [each for each in known if each.invocation_id == unit.invocation_id]
        # A digest made with an earlier key of the host comes last.
        known.sort(key=lambda each: not self._is_of_present_key(each.digest))
        return known[0] if known else None

    def _is_of_present_key(self, digest: str) -> bool:
        present = self.desired.digest if isinstance(self.desired, Desired) else ""
        if not present and self.sealed is not None:
            present = self.sealed.digest
        return are_of_one_key(digest, present)


def launched(now: Observed, grace_over: bool) -> Evidence | None:
    """What the present invocation runs, once its launcher has reported or its time to report is over."""
    return now.evidence if now.hint is not None or grace_over else None


def is_down_by_us(now: Observed, grace_over: bool) -> bool:
    """Whether the agent's own restart left the VM down. False if somebody stopped the VM."""
    if now.attempt is None or now.unit is None or now.attempt.outcome is Outcome.HALTED:
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
    """Whether the recorded restart has succeeded, or the VM has been stopped since."""
    if now.attempt is None or now.attempt.outcome not in {Outcome.RESTARTING, Outcome.RETRY} or unit.has_job:
        return False
    if unit.is_active:
        is_launched = now.hint is not None or grace_over
        is_on_it = is_launched and now.runs is not None and now.runs.digest == now.attempt.digest
        return is_on_it and not is_unproven(now)
    return unit.is_stopped


def is_unproven(now: Observed) -> bool:
    """Whether the agent's restart has worked so far, but the VM has not passed its health check yet."""
    attempt, evidence = now.attempt, now.evidence
    if attempt is None or evidence is None or not now.vm.health:
        return False
    return attempt.outcome is Outcome.RESTARTING and evidence.digest == attempt.digest


def must_roll_back(now: Observed, grace_over: bool) -> bool:
    """Whether the agent's restart left the VM down, and a rollback is possible and not done yet."""
    attempt = now.attempt
    if attempt is None or not attempt.previous or attempt.outcome is Outcome.ROLLED_BACK:
        return False
    return is_down_by_us(now, grace_over)


def running_digest(now: Observed, unit: UnitState, wanted: Desired) -> str | None:
    """Digest that the present invocation was started with; None if it is unknown or of another host key."""
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
