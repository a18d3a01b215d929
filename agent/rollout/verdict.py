# SPDX-License-Identifier: MIT
"""Whether a restart succeeded, judged by the unit's state and by root's evidence.

The launcher's report is a hint, which other processes may forge or remove. It tells when the VM is
launched, so the agent need not wait longer. Without a report, a VM that stays up until the deadline counts
as launched.
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
    """Why a restart failed after its job ended; empty if it succeeded, None if it is too early to tell.

    ``before`` is the unit's invocation before the restart. ``restarts`` is systemd's restart count right
    after it: systemd does not always reset it. The job result ``done`` alone says only that the job ended.
    """
    if hint is None and unit.restarts - restarts >= FLAPS:
        result = "" if unit.result == "success" else f", with result {unit.result!r}"
        return f"its unit fails again and again{result}"
    if unit.is_changing:  # another job, or systemd's own next try
        return None
    if unit.active in {"failed", "inactive"}:
        return f"its unit is {unit.active}, with result {unit.result!r}"
    if not unit.is_active or unit.invocation_id == before:
        return None
    # If a newer generation was sealed while the VM was down, a start on that is a success too. So is a start
    # on the same generation, sealed again with another key of the host.
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
    """Why a restart failed that did not prove its success before the deadline; empty if it did not fail.

    If the VM was restarted and stays up, a missing launcher's report is no failure: another process may have
    removed the report.
    """
    if unit.invocation_id == before:
        return "its unit was not restarted"
    if unit.is_active:
        return ""
    return f"its unit is {unit.active} ({unit.sub}), with result {unit.result!r}"
