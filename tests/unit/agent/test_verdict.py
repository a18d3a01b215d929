# SPDX-License-Identifier: MIT
"""What came of a restart: by systemd, by evidence, and, for how long to wait, by the launcher's report."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.evidence import Evidence
from agent.units import UnitState
from agent.verdict import overdue, verdict
from launcher.handoff import Channel, Delivery, Manifest, Stamp

BEFORE, AFTER = "a" * 32, "b" * 32
OLD, NEW = "1" * 64, "2" * 64
UNIT = UnitState("microvm@web.service", "loaded", "active", "running", AFTER)
MANIFEST = Manifest("web", 2, NEW, "0" * 32, Delivery(), ())
ON_IT = Evidence(AFTER, 2, NEW, "0" * 32)
REPORT = Stamp("web", 1, OLD, "0" * 32, AFTER, Channel.API, 0)


def judged(
    unit: UnitState = UNIT, evidence: Evidence | None = ON_IT, hint: Stamp | None = REPORT
) -> str | None:
    """What a restart of generation 2 has come to."""
    return verdict(unit, evidence, hint, MANIFEST, BEFORE)


def test_evidence_and_a_report_are_a_success() -> None:
    """Whatever the report says that the VM was started on."""
    assert judged() == ""
    assert judged(evidence=Evidence(AFTER, 3, "3" * 64, "0" * 32)) == ""


def test_evidence_of_an_older_generation_is_a_failure() -> None:
    """At once, and whatever the report says."""
    older = Evidence(AFTER, 1, OLD, "0" * 32)
    assert (
        judged(evidence=older, hint=REPORT.but(digest=NEW, generation=2)) == "it was started on generation 1"
    )
    assert judged(evidence=older, hint=None) == "it was started on generation 1"


@pytest.mark.parametrize("evidence", [ON_IT, None])
def test_a_report_is_waited_for_and_not_for_ever(evidence: Evidence | None) -> None:
    """A VM that has stayed up until then is not started again for it: a neighbour may have removed it."""
    assert judged(evidence=evidence, hint=None) is None
    assert overdue(UNIT, BEFORE) == ""


def test_what_did_not_come_up_is_a_failure() -> None:
    """With or without a report."""
    assert judged(replace(UNIT, active="failed", result="exit-code"))
    assert judged(replace(UNIT, restarts=2), hint=None)
    assert judged(replace(UNIT, active="activating")) is None
    assert judged(replace(UNIT, invocation_id=BEFORE)) is None
    assert overdue(replace(UNIT, invocation_id=BEFORE), BEFORE) == "its unit was not restarted"
    assert overdue(replace(UNIT, active="activating", sub="auto-restart"), BEFORE)
