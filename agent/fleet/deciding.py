# SPDX-License-Identifier: MIT
"""Whether a VM may have a slot, from what a group is at one revision. No effects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from credferry.agent.fleet.model import LIMIT_MAX, BadLimit, Full, Halted, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from credferry.agent.fleet.model import Group, Holder


@dataclass(frozen=True, slots=True)
class Take:
    """This slot is free: take it, if the group is still the same."""

    number: int


@dataclass(frozen=True, slots=True)
class Keep:
    """The VM has this slot: write it anew, if the group is still the same."""

    number: int
    revision: int


def decide(
    group: Group, holder: Holder, pick: Callable[[Sequence[int]], int]
) -> Full | Halted | Unavailable | Take | Keep:
    """What a VM that asks for a slot gets. ``pick`` chooses one of the free slots.

    A VM that has a slot keeps it, unless another VM has halted the group since. A VM that has halted the
    group itself may go on, because only a newer value can make it well.
    """
    for each in group.slots:
        if each.holder.is_twin_of(holder):
            return Unavailable(
                f"another machine holds slot {each.number} of group {group.name} as {holder.name}",
                "give each host its own name in [fleet]; if this machine was installed anew, "
                f"free the slots of {holder.host}",
            )
    mine = next((each for each in group.slots if each.holder == holder), None)
    if group.halt is not None and (mine is None or group.halt.holder != holder):
        return Halted(group.halt)
    if mine is not None:
        return Keep(mine.number, mine.revision)
    if isinstance(group.limit, BadLimit):
        return Unavailable(
            f"the limit of group {group.name} is not a number from 1 to {LIMIT_MAX}",
            f"set the key limit of group {group.name} to such a number",
        )
    # A lowered limit: slots above it are held, too. They count until they are given back.
    if len(group.held) >= group.limit.number:
        return Full(group.held, group.limit.number)
    taken = {each.number for each in group.held}
    return Take(pick([number for number in range(group.limit.number) if number not in taken]))
