# SPDX-License-Identifier: MIT
"""How a restart that the agent asked for has ended: well, badly, or by somebody else's act."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from credferry.agent.systemd.units import CANCELED

if TYPE_CHECKING:
    from credferry.agent.systemd.units import UnitState


@dataclass(frozen=True, slots=True)
class Succeeded:
    """The VM runs what it was restarted for, or something newer. ``unit`` is what told so."""

    unit: UnitState


@dataclass(frozen=True, slots=True)
class Failed:
    """The VM does not come up on what it was restarted for."""

    reason: str
    is_left_down: bool = False
    """Whether the restart itself has stopped the unit, which looks as if an operator had."""


@dataclass(frozen=True, slots=True)
class Overruled:
    """An operator has stopped the VM, or has canceled the restart. That says nothing of the generation."""


Ending = Succeeded | Failed | Overruled


def judged(reason: str, result: str, unit: UnitState, before: str) -> Failed | Overruled:
    """What to make of a restart that did not succeed, for a reason.

    ``result`` is systemd's word for the job, ``before`` the unit's invocation before it. A stop leaves a
    unit that is inactive after a success. So does a condition of the unit that does not hold; but then the
    job was not canceled, and there is no new invocation. A stop can also leave a unit that has failed, where
    the start was under way: only the job tells.
    """
    is_canceled = result == CANCELED
    if unit.is_stopped and (is_canceled or unit.invocation_id != before):
        return Overruled()
    if is_canceled and (unit.active == "failed" or unit.invocation_id == before):
        return Overruled()
    return Failed(reason)
