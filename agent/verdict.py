# SPDX-License-Identifier: MIT
"""Whether a restart was a success: from systemd's word, the unit's state, and the launcher's stamp."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.units import FLAPS, UnitState

if TYPE_CHECKING:
    from launcher.handoff import Manifest, Stamp


def verdict(
    unit: UnitState, stamp: Stamp | None, manifest: Manifest, before: str, restarts: int = 0
) -> str | None:
    """Why a restart whose job is done was no success; empty when it was, None when it is too early to tell.

    ``before`` is the unit's invocation before the restart, ``restarts`` systemd's count right after it: that
    does not always begin anew. ``done`` alone says only that the job ended.
    """
    if stamp is None and unit.restarts - restarts >= FLAPS:
        return f"its unit fails again and again, with result {unit.result!r}"
    if unit.is_changing:  # somebody else's job, or systemd's own next try
        return None
    if unit.active in {"failed", "inactive"}:
        return f"its unit is {unit.active}, with result {unit.result!r}"
    if not unit.is_active or unit.invocation_id == before or stamp is None:
        return None
    # A newer one than ours was sealed while the VM was down, and it started on that: as good.
    if stamp.digest == manifest.digest or stamp.generation > manifest.generation:
        return ""
    return f"it was started on generation {stamp.generation}"


def overdue(unit: UnitState, before: str) -> str:
    """Why a restart counts as failed that could not be told to be a success in time."""
    if unit.invocation_id == before:
        return "its unit was not restarted"
    if unit.is_active:
        return "it left no stamp: is its hypervisor's command credferry-launch?"
    return f"its unit is {unit.active} ({unit.sub}), with result {unit.result!r}"
