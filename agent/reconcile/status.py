# SPDX-License-Identifier: MIT
"""Status of a VM for people and programs: state, since when, why, and the result of its last start.

The status uses only facts that survive a restart of the agent. So the agent, a command without the agent,
and an agent that has just started all report the same.
"""

from __future__ import annotations

import enum
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from credferry.agent.reconcile.aging import ends, since, warnings
from credferry.agent.reconcile.decision import Decision, State
from credferry.agent.reconcile.desired import Desired
from credferry.agent.reconcile.way import Choice, choose
from credferry.agent.store.records import Attempt, Outcome, Way

if TYPE_CHECKING:
    from credferry.agent.reconcile.observed import Observed
    from credferry.agent.store.generations import Store

UNDER_WAY = "its restart is under way"
PUSH_UNDER_WAY = "its push is under way"
_MICROVMS = Path("/var/lib/microvms")


class Arrival(enum.StrEnum):
    """How a VM got the generation that it runs."""

    START = "start"
    PUSH = "push"


@dataclass(frozen=True, slots=True)
class VmStatus:
    """Status of one VM at one check. A missing generation is 0, a missing text is empty."""

    name: str
    unit: str
    unit_state: str
    state: State
    reasons: tuple[str, ...]
    since: int
    """Seconds since 1970; 0 if unknown."""
    sealed: int
    running: int
    is_held: bool
    last_result: str
    system: str
    """For a VM of microvm.nix: ``current``, or ``older`` if it runs an older build; else empty."""
    arrived: Arrival | None
    """How it got what it runs; None if that is unknown."""
    next_way: Way | None
    """How it would get another generation now; None for a VM that is down."""
    next_reason: str
    """Why that would be a restart, though the VM is configured as live; else empty."""


def standing(observed: Observed, decision: Decision, store: Store) -> VmStatus:
    """Status of a VM, from the result of a check."""
    unit, sealed, runs = observed.unit, observed.sealed, observed.runs
    chosen = next_way(observed)
    warned = warnings(observed.vm, since(observed, store), ends(observed), time.time())
    return VmStatus(
        name=observed.vm.name,
        unit=observed.vm.unit,
        unit_state=f"{unit.active} ({unit.sub})" if unit is not None else "unknown",
        state=decision.state,
        reasons=(*decision.shown, *warned),
        since=int(_since(observed, decision, store) or 0),
        sealed=sealed.generation if sealed is not None else 0,
        running=runs.generation if runs is not None else 0,
        is_held=observed.held,
        last_result=_last_result(observed),
        system=_system(observed.vm.unit),
        arrived=_arrived(observed),
        next_way=chosen.way if chosen is not None else None,
        next_reason=chosen.why if chosen is not None else "",
    )


def _arrived(observed: Observed) -> Arrival | None:
    if observed.runs is None or observed.is_in_doubt:
        return None
    return Arrival.PUSH if observed.pushed is not None else Arrival.START


def next_way(observed: Observed) -> Choice | None:
    """How a running VM would get what is published; or, if that is unknown, what is sealed."""
    wanted = observed.desired if isinstance(observed.desired, Desired) else None
    if observed.unit is None or not observed.unit.is_active:
        return None
    if wanted is not None:
        return choose(observed, wanted.digest, wanted.entries)
    sealed = observed.sealed
    return choose(observed, sealed.digest, sealed.credentials) if sealed is not None else None


def steps(decision: Decision) -> list[str]:
    """The steps that a decision would take, in words and in order."""
    words = []
    if decision.seal is not None:
        words.append(f"seal {', '.join(entry.name for entry in decision.seal.entries)}")
    match decision.way:
        case Way.PUSH:
            words.append(f"push to the guest of {decision.vm.unit}")
        case Way.RESTART:
            words.append(f"restart {decision.vm.unit}" + (f" ({decision.why})" if decision.why else ""))
    return words


def _since(observed: Observed, decision: Decision, store: Store) -> float | None:
    name, sealed = observed.vm.name, observed.sealed
    unit_changed = observed.unit.changed_at if observed.unit is not None else None
    match decision.state:
        case State.FAILED | State.HALTED | State.ROLLED_BACK:
            return store.attempted_at(name)
        case (
            State.HELD | State.APPROVAL | State.IGNORED | State.RESTART_DUE | State.PUSH_DUE | State.WAITING
        ):
            sealed_at = store.sealed_at(sealed) if sealed is not None and decision.seal is None else None
            return max(filter(None, (sealed_at, store.held_at(name))), default=None)
        case State.REFUSED | State.NO_UNIT:
            return None
        case State.SEAL_DUE | State.IN_STEP | State.STOPPED | State.CHANGING:
            return unit_changed


def _last_result(observed: Observed) -> str:
    attempt, evidence = observed.attempt, observed.evidence
    match attempt:
        case Attempt(outcome=Outcome.RESTARTING, way=way):
            return UNDER_WAY if way is Way.RESTART else PUSH_UNDER_WAY
        case Attempt(outcome=outcome, reason=reason) if reason and outcome is not Outcome.RETRY:
            return reason
        case _ if observed.pushed is not None:
            return f"took generation {observed.pushed.generation} by a push"
        case _:
            return f"started on generation {evidence.generation}" if evidence is not None else ""


def _system(unit: str) -> str:
    instance = unit.removesuffix(".service").partition("@")[2]
    if not unit.startswith("microvm@") or not instance:
        return ""
    home = _MICROVMS / instance
    try:
        return "current" if (home / "booted").readlink() == (home / "current").readlink() else "older"
    except OSError:
        return ""
