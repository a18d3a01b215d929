# SPDX-License-Identifier: MIT
"""Whether a VM still needs its slot of the fleet: a pure function of one look."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from credferry.agent.reconcile.decision import State
from credferry.agent.store.records import Outcome, Way

if TYPE_CHECKING:
    from credferry.agent.reconcile.decision import Decision
    from credferry.agent.reconcile.observed import Observed
    from credferry.agent.store.records import Attempt, Claim

_TAKES_DOWN: Final = {Outcome.RESTARTING, Outcome.RETRY, Outcome.FAILED, Outcome.ROLLED_BACK}


def needed_for(
    decision: Decision, now: Observed, claim: Claim, canary_seconds: float, has_had: float
) -> float:
    """For how many seconds a VM needs its slot; infinity where something must happen first.

    A VM needs it while it is down by the agent, out of service, not proved to be well, or about to be
    restarted. ``has_had``: for how many seconds it has run what it runs.
    """
    unit, attempt = now.unit, now.attempt
    if (
        decision.needs_work
        or decision.awaits_slot
        or decision.look_again
        or decision.state is State.CHANGING
    ):
        return math.inf
    if unit is None or unit.has_job or has_failed(attempt, claim):
        return math.inf
    if not unit.is_active:
        # Stopped by hand, or failed at a start that was not the agent's: it is not down for a change.
        is_ours = attempt is not None and attempt.outcome in _TAKES_DOWN
        return math.inf if is_ours else 0.0
    if now.owed is not None:
        return math.inf
    if attempt is not None and attempt.outcome is Outcome.RESTARTING:
        # It never began, and cannot begin: the VM is held, ignored or refused.
        has_begun = attempt.way is Way.PUSH or not attempt.before or attempt.before != unit.invocation_id
        return math.inf if has_begun else 0.0
    return max(0.0, canary_seconds - has_had)


def has_failed(attempt: Attempt | None, claim: Claim | None) -> bool:
    """Whether a change has failed on the VM, which nothing has made right since."""
    if attempt is None or attempt.by_operator:
        return False
    return attempt.outcome in {Outcome.FAILED, Outcome.ROLLED_BACK} or (
        attempt.outcome is Outcome.RETRY and claim is not None and bool(claim.halt)
    )
