# SPDX-License-Identifier: MIT
"""The audit as JSON and as CSV: what is printed, word for word."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from credferry.agent.audit import history
from credferry.agent.audit.events import Event, Order
from credferry.agent.audit.history import History, UnitEvent, UnitRecord
from credferry.agent.audit.records import Record
from credferry.agent.audit.rotations import tell
from credferry.agent.cli.audit_forms import record_row
from credferry.agent.cli.audit_views import Views

if TYPE_CHECKING:
    from collections.abc import Callable

GOLDEN = Path(__file__).parents[2] / "data" / "audit-forms"
BEGIN = datetime(2026, 11, 23, 8, 0, tzinfo=UTC)
UNIT = "microvm@web.service"


def at(seconds: float) -> datetime:
    """So long after the beginning."""
    return BEGIN + timedelta(seconds=seconds)


def rotation(begin: float, generation: int, key: str, run: str) -> list[Record]:
    """The records of a change of ``API_KEY``, and of the VM's restart onto it."""
    changed, all_of_it = {"API_KEY": key}, {"API_KEY": key, "SITE": "5" * 64}
    return [
        Record(
            at(begin), Event.PUBLISHED, "web: API_KEY is new", "web", run, None, changed, ("API_KEY",), UNIT
        ),
        Record(
            at(begin + 0.25),
            Event.SEALED,
            f"web: generation {generation} is sealed",
            *("web", run, generation, all_of_it, ("API_KEY", "SITE"), UNIT),
            sequence=generation * 10,
        ),
        Record(at(begin + 0.5), Event.RESTART_ASKED, "web: restart", "web", run, generation, unit=UNIT),
        Record(
            at(begin + 1.125),
            Event.LAUNCHED,
            f"VM web was started with generation {generation}",
            *("web", run, generation),
            credentials=("API_KEY", "SITE"),
            unit=UNIT,
            channel="api",
            boot="b",
            invocation=f"i{generation}",
        ),
        Record(at(begin + 3), Event.RESTARTED, "web: runs it", "web", run, generation, unit=UNIT),
    ]


RECORDS = (
    Record(at(0), Event.AGENT_STARTED, "credferry watches /run/secrets", "", "", None, sequence=1),
    *rotation(10, 1, "a" * 64, "1" * 32),
    *rotation(100, 2, "b" * 64, "2" * 32),
    *rotation(200, 3, "a" * 64, "3" * 32),
    Record(
        at(300),
        Event.ORDERED,
        "web: rotate, ordered by alice",
        *("web", "4" * 32, 3),
        unit=UNIT,
        sequence=40,
        order=Order.ROTATE,
        caller="alice",
        caller_uid=1000,
        reason="=once more",
    ),
    Record(at(301), Event.HELD, "web: held", "web", "", None, unit=UNIT),
)
UNITS = (
    UnitRecord(at(12), UnitEvent.STARTED, UNIT, "i1"),
    UnitRecord(at(100.75), UnitEvent.STOPPED, UNIT, "i1"),
)


@pytest.fixture
def views(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Views]:
    """Views of the records above. They stand in for a journal, whose entries cannot have given times."""
    monkeypatch.setattr(history, "load", lambda _directory: History(RECORDS, UNITS))
    monkeypatch.setattr(history, "read", lambda _directory: iter(RECORDS))
    return lambda form: Views(Path("/nonexistent"), Path(), form, (), None, None, None, UTC)


@pytest.mark.parametrize("form", ["json", "csv"])
@pytest.mark.parametrize("view", ["story", "records", "periods"])
def test_what_is_printed(
    views: Callable[[str], Views], capfd: pytest.CaptureFixture[str], view: str, form: str
) -> None:
    """Each view prints what scripts were written for: names, order and values stay."""
    getattr(views(form), view)()
    expected = (GOLDEN / f"{view}.{form}").read_text(encoding="utf-8")
    assert capfd.readouterr().out.replace("\r\n", "\n") == expected


def test_an_order_of_the_fleet_says_who_gave_it() -> None:
    """It concerns no VM, so it begins no story, and its row names the order and the user."""
    order = {"order": "fleet halt", "caller": "root", "caller_uid": 0, "reason": "a test"}
    record = Record(at(0), Event.FLEET_ORDERED, "fleet halt web", "", "4" * 32, None, **order)  # type: ignore[arg-type]  # the fields are typed one by one
    story = tell((record,), [])
    assert (story.rotations, story.facts) == ((), (record,))
    ordered = record_row(record).ordered
    assert ordered is not None
    assert (ordered.order, ordered.caller, ordered.caller_uid) == ("fleet halt", "root", 0)
