# SPDX-License-Identifier: MIT
"""What came of a restart: by systemd, by evidence, and, for how long to wait, by the launcher's report."""

from __future__ import annotations

from dataclasses import replace

import pytest

from credferry.agent.rollout.verdict import overdue, verdict
from credferry.agent.store.evidence import Evidence
from credferry.agent.systemd.units import UnitState
from credferry.launcher.handoff import Channel, Delivery, Manifest, Stamp

BEFORE, AFTER = "a" * 32, "b" * 32
OLD, NEW = "1" * 56 + "2" * 8, "2" * 64
OTHER_KEY = "3" * 64
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


@pytest.mark.parametrize("hint", [REPORT, None])
@pytest.mark.parametrize(
    ("unit", "said"),
    [
        (replace(UNIT, active="failed", result="exit-code"), "its unit is failed, with result 'exit-code'"),
        (replace(UNIT, active="inactive"), "its unit is inactive, with result 'success'"),
        (
            replace(UNIT, active="inactive", invocation_id=BEFORE),
            "its unit is inactive, with result 'success'",
        ),
        (replace(UNIT, active="failed", has_job=True), None),
        (replace(UNIT, active="activating"), None),
        (replace(UNIT, active="maintenance"), None),
        (replace(UNIT, invocation_id=BEFORE), None),
    ],
    ids=[
        "failed",
        "inactive",
        "never started",
        "a job is left",
        "activating",
        "neither up nor down",
        "not restarted yet",
    ],
)
def test_the_unit_s_state_counts_first(unit: UnitState, said: str | None, hint: Stamp | None) -> None:
    """What is down has failed, and what is not yet up anew is waited for, whatever was reported."""
    assert judged(unit, hint=hint) == said


@pytest.mark.parametrize(
    ("restarts", "before", "hint", "said"),
    [
        (1, 0, None, None),
        (2, 0, None, "its unit fails again and again, with result 'exit-code'"),
        (6, 5, None, None),
        (7, 5, None, "its unit fails again and again, with result 'exit-code'"),
        (7, 5, REPORT, ""),
    ],
)
def test_a_unit_that_fails_again_and_again_has_failed(
    restarts: int, before: int, hint: Stamp | None, said: str | None
) -> None:
    """Two starts by systemd itself since the job's end are too many, unless the VM was launched."""
    unit = replace(UNIT, restarts=restarts, result="exit-code")
    assert verdict(unit, ON_IT, hint, MANIFEST, BEFORE, before) == said
    if not before:
        assert verdict(unit, ON_IT, hint, MANIFEST, BEFORE) == said


def test_between_two_starts_there_is_no_result_to_tell() -> None:
    """Systemd has the result "success" again while it starts the unit anew, which says nothing."""
    unit = replace(UNIT, restarts=2, result="success")
    assert verdict(unit, ON_IT, None, MANIFEST, BEFORE) == "its unit fails again and again"


@pytest.mark.parametrize(
    ("generation", "digest", "said"),
    [
        (2, NEW, ""),
        (1, NEW, ""),
        (2, OLD, "it was started on generation 2"),
        (1, OLD, "it was started on generation 1"),
        (3, OLD, ""),
        (2, OTHER_KEY, ""),
        (1, OTHER_KEY, "it was started on generation 1"),
    ],
)
def test_the_same_content_or_something_newer_will_do(generation: int, digest: str, said: str) -> None:
    """A generation with the same digest gives the guest the same; a newer one was sealed meanwhile.

    So does the same generation that was sealed anew with another key of the host.
    """
    assert judged(evidence=Evidence(AFTER, generation, digest, "0" * 32)) == said


@pytest.mark.parametrize(
    ("unit", "said"),
    [
        (UNIT, ""),
        (replace(UNIT, invocation_id=BEFORE), "its unit was not restarted"),
        (replace(UNIT, active="failed", invocation_id=BEFORE), "its unit was not restarted"),
        (
            replace(UNIT, active="activating", sub="auto-restart", result="exit-code"),
            "its unit is activating (auto-restart), with result 'exit-code'",
        ),
    ],
)
def test_what_is_said_once_the_time_is_over(unit: UnitState, said: str) -> None:
    """A VM that was started anew and is up has not failed; the reason names the unit's state."""
    assert overdue(unit, BEFORE) == said
