# SPDX-License-Identifier: MIT
"""States of units that are known already, and whether they still hold."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from credferry.agent.systemd.units import UnitState


@dataclass(frozen=True, slots=True)
class ListedUnit:
    """A unit's state as ListUnitsByNames returns it."""

    load: str
    active: str
    sub: str
    has_job: bool


@dataclass(frozen=True, slots=True)
class KnownUnit:
    """A unit's full state, and when systemd was asked for it, in seconds on the monotonic clock."""

    unit: UnitState
    asked: float

    def is_vouched_for(self, listed: ListedUnit | None, invocation: str) -> bool:
        """Whether the state still holds: the unit is active, and in the same invocation."""
        unit = self.unit
        same = listed == ListedUnit(unit.load, unit.active, unit.sub, has_job=False) and not unit.has_job
        # A changed drop-in changes neither the listed state nor the invocation. So ask again.
        same = same and unit.keeps_evidence and not unit.needs_reload
        return same and unit.is_active and invocation == unit.invocation_id

    def now(self) -> UnitState:
        """The state as it is now: ``active_seconds`` has grown since systemd was asked."""
        if not self.unit.is_active:
            return self.unit
        later = time.clock_gettime(time.CLOCK_MONOTONIC) - self.asked
        return replace(self.unit, active_seconds=self.unit.active_seconds + later)
