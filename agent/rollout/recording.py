# SPDX-License-Identifier: MIT
"""Writes the audit records of a rollout: each under the run of an order or of a change."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from credferry.agent.audit.events import Event
    from credferry.agent.audit.writer import Audit
    from credferry.agent.config.model import VmConfig
    from credferry.agent.store.evidence import Evidence
    from credferry.agent.store.records import Attempt, Pushed
    from credferry.launcher.handoff import Manifest


def failure(attempt: Attempt) -> str:
    """The text about a failure that goes to other hosts. It contains no output of a unit."""
    return f"its {attempt.way.value} for run {attempt.run[:12]} failed"


def record(  # noqa: PLR0917 (all that one record holds)
    audit: Audit,
    event: Event,
    message: str,
    vm: VmConfig,
    what: Manifest | Evidence | Pushed,
    attempt: Attempt | None = None,
) -> None:
    """Write an audit record under the run of the operator's order, or else under that of the change."""
    order = attempt.order if attempt is not None else ""
    audit.record(
        event,
        message,
        run=order or what.run,
        vm=vm.name,
        unit=vm.unit,
        generation=what.generation,
    )
