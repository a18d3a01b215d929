# SPDX-License-Identifier: MIT
"""How a restart by the agent ended: success, failure, or overruled by somebody else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from credferry.agent.systemd.units import CANCELED

if TYPE_CHECKING:
    from credferry.agent.systemd.units import UnitState


@dataclass(frozen=True, slots=True)
class Succeeded:
    """The VM runs the generation it was restarted for, or a newer one. ``unit`` is the state seen."""

    unit: UnitState


@dataclass(frozen=True, slots=True)
class Failed:
    """The VM did not start on the generation it was restarted for."""

    reason: str
    is_left_down: bool = False
    """Whether the restart itself stopped the unit. This looks the same as a stop by an operator."""


@dataclass(frozen=True, slots=True)
class Overruled:
    """An operator stopped the VM or canceled the restart. This says nothing about the generation."""


Ending = Succeeded | Failed | Overruled


def judged(reason: str, result: str, unit: UnitState, before: str) -> Failed | Overruled:
    """Whether a restart that did not succeed has failed or was overruled; ``reason`` is that of a failure.

    ``result`` is systemd's result of the job, ``before`` the unit's invocation before it. A stop leaves the
    unit inactive, with result success. So does a unit condition that is not met; but then the job was not
    canceled, and there is no new invocation. A stop during a start can leave the unit failed. Only the job's
    result tells this from a failed start.
    """
    is_canceled = result == CANCELED
    if unit.is_stopped and (is_canceled or unit.invocation_id != before):
        return Overruled()
    if is_canceled and (unit.active == "failed" or unit.invocation_id == before):
        return Overruled()
    return Failed(reason)
