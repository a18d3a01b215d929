# SPDX-License-Identifier: MIT
"""Whether a restart was a success: from systemd's word, the unit's state, and the evidence that root kept.

The launcher's report is a hint, which others may forge or remove. It tells when the VM is launched, so that
nobody waits longer than needed. Without it a VM that stays up until the time is over counts as launched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from credferry.agent.reconcile.desired import are_of_one_key
from credferry.agent.systemd.units import FLAPS, UnitState

if TYPE_CHECKING:
    from credferry.agent.store.evidence import Evidence
    from credferry.launcher.handoff import Manifest, Stamp


def verdict(  # noqa: PLR0917 (all that there is to judge by)
    unit: UnitState,
    evidence: Evidence | None,
    hint: Stamp | None,
    manifest: Manifest,
    before: str,
    restarts: int = 0,
) -> str | None:
    """Why a restart whose job is done was no success; empty when it was, None when it is too early to tell.

    ``before`` is the unit's invocation before the restart, ``restarts`` systemd's count right after it: that
    does not always begin anew. ``done`` alone says only that the job ended.
    """
    if hint is None and unit.restarts - restarts >= FLAPS:
        return f"its unit fails again and again, with result {unit.result!r}"
    if unit.is_changing:  # somebody else's job, or systemd's own next try
        return None
    if unit.active in {"failed", "inactive"}:
        return f"its unit is {unit.active}, with result {unit.result!r}"
    if not unit.is_active or unit.invocation_id == before:
        return None
    # A newer one than ours was sealed while the VM was down, and it started on that: as good. So is the same
    # one, sealed anew with another key of the host.
    if (
        evidence is not None
        and evidence.digest != manifest.digest
        and evidence.generation <= manifest.generation
        and not _is_same_anew(evidence, manifest)
    ):
        return f"it was started on generation {evidence.generation}"
    return None if hint is None else ""


def _is_same_anew(evidence: Evidence, manifest: Manifest) -> bool:
    is_same = evidence.generation == manifest.generation
    return is_same and not are_of_one_key(evidence.digest, manifest.digest)


def overdue(unit: UnitState, before: str) -> str:
    """Why a restart failed that was not seen to be a success in time; empty where it did not fail.

    A VM that was started anew and has stayed up is not started again for want of a launcher's report, which
    a neighbour may have removed.
    """
    if unit.invocation_id == before:
        return "its unit was not restarted"
    if unit.is_active:
        return ""
    return f"its unit is {unit.active} ({unit.sub}), with result {unit.result!r}"
