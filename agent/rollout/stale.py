# SPDX-License-Identifier: MIT
"""Slots that nobody has given back for ``fleet.stale_seconds``, by this host's own clock."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from credferry.agent.fleet.model import Full, Slot

if TYPE_CHECKING:
    from credferry.agent.fleet.model import Acquired


@dataclass(slots=True)
class Stale:
    """When this agent first saw each slot. What the slot says of its age is another host's word."""

    _seen: dict[str, dict[tuple[int, int], float]] = field(default_factory=dict)
    """By group: number and revision of each slot, and the monotonic time of the first sight."""

    def found(self, group: str, answer: Acquired, seconds: float, now: float) -> list[Slot]:
        """The slots in an answer that are stale. ``seconds`` of 0 means that none ever is."""
        if not isinstance(answer, Full):
            self._seen.pop(group, None)
            return []
        if not seconds:
            return []
        slots = [each for each in answer.held if isinstance(each, Slot)]
        known = self._seen.get(group, {})
        seen = {(each.number, each.revision): known.get((each.number, each.revision), now) for each in slots}
        self._seen[group] = seen
        return [each for each in slots if now - seen[each.number, each.revision] >= seconds]
