# SPDX-License-Identifier: MIT
"""What the agent remembers of its VMs' turns in the fleet. A restart of the agent forgets it, at no risk.

The claims on disk say which slots may be held. This says how far a VM has come on the way to one.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from credferry.agent.rollout.slots import Awaiting

if TYPE_CHECKING:
    from collections.abc import Iterator

GRANTED_SECONDS: Final = 60.0
"""A slot that is not used so soon is asked for again: an operator may have freed it, or halted the group."""
LONG: Final = 3600.0
_WAIT_SECONDS_MIN: Final = 0.05


class Stage(enum.Enum):
    """How far a VM has come."""

    ASKING = enum.auto()
    """The engine is being asked for a slot."""
    DENIED = enum.auto()
    """The engine gave none. The agent asks again at ``SlotTurn.until``."""
    GRANTED = enum.auto()
    """The engine gave one, and no worker has begun."""
    WORKING = enum.auto()
    """A worker restarts the VM or pushes to it."""
    HAD = enum.auto()
    """The work has ended, and the slot is not given back yet."""
    RETURNING = enum.auto()
    """The slot is being given back."""


_IN_THE_WAY: Final = {Stage.ASKING, Stage.DENIED, Stage.GRANTED, Stage.WORKING}
"""A host asks for no more slots at a time than it can use."""


@dataclass(slots=True)
class SlotTurn:
    """One VM's way to a slot, and back. Times are monotonic, but ``since``."""

    group: str
    stage: Stage
    moment: float
    """When it came to this stage."""
    since: float = 0.0
    """Since when the VM has waited, in seconds since 1970."""
    until: float = 0.0
    reason: str = ""
    """Why it was denied, also while the agent asks again: what is shown does not change each time."""
    detail: str = ""
    order: str = ""
    """The run of the operator's order for which the engine was asked; empty for none."""
    is_away: bool = False
    """Whether the engine did not answer as it should."""


@dataclass(slots=True)
class Memory:
    """The turns of all VMs. The caller holds a lock."""

    turns: dict[str, SlotTurn] = field(default_factory=dict)

    def ahead(self, vm: str, group: str, now: float, overdue: float) -> Iterator[tuple[str, SlotTurn]]:
        """Other VMs of the group that are on their way to a slot or use one, and are not overdue."""
        for name, turn in self.turns.items():
            is_late = turn.stage is Stage.WORKING and now - turn.moment >= overdue
            if name != vm and turn.group == group and turn.stage in _IN_THE_WAY and not is_late:
                yield name, turn

    def left(self, vm: str, group: str, now: float, width: float, overdue: float) -> Awaiting | None:
        """What a VM waits for; None if a worker may claim for it. ``width``: how many may ask at a time."""
        turn = self.turns.get(vm)
        if turn is not None and turn.group == group:
            match turn.stage:
                case Stage.ASKING | Stage.DENIED if turn.reason:
                    return _denied(turn, now)
                case Stage.ASKING:
                    return Awaiting("until its fleet answers", "", LONG, is_turn=True)
                case Stage.RETURNING:
                    return Awaiting("until its fleet has taken its slot back", "", LONG, is_turn=True)
                case _:
                    return None
        ahead = list(self.ahead(vm, group, now, overdue))
        if len(ahead) < width:
            return None
        denied = next((each for _, each in ahead if each.reason), None)
        if denied is not None:
            return _denied(denied, now)
        return Awaiting(f"until {ahead[0][0]} has had its turn in the fleet", "", LONG, is_turn=True)

    def has_fresh(self, vm: str, group: str, now: float) -> bool:
        """Whether a VM has a slot that was granted a moment ago."""
        turn = self.turns.get(vm)
        return (
            turn is not None
            and turn.group == group
            and turn.stage is Stage.GRANTED
            and now - turn.moment < GRANTED_SECONDS
        )


def _denied(turn: SlotTurn, now: float) -> Awaiting:
    return Awaiting(turn.reason, turn.detail, max(_WAIT_SECONDS_MIN, turn.until - now), is_turn=False)
