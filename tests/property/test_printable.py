# SPDX-License-Identifier: MIT
"""Whatever text a VM's own records hold, no form of output passes on what acts on its reader."""

from __future__ import annotations

import csv
import io
import json
from contextlib import redirect_stdout
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec
from hypothesis import example, given
from hypothesis import strategies as st

from credferry.agent.audit.events import Event
from credferry.agent.audit.history import History
from credferry.agent.audit.html import page
from credferry.agent.audit.periods import periods
from credferry.agent.audit.records import Record
from credferry.agent.audit.rotations import Story, tell
from credferry.agent.cli import audit_forms as forms
from credferry.agent.cli.common import print_json
from credferry.agent.cli.tables import print_table
from credferry.agent.cli.terminal import say
from credferry.agent.printable import cell, json_text, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from credferry.agent.cli.documents import Document

BEGIN = datetime(2026, 11, 23, 8, 0, tzinfo=UTC)
TEXT = st.text(st.characters(), max_size=20)  # with surrogates, which stand for bytes that are no text
EVIL = (
    "=cmd|' /C calc'!A0",
    "\x1b]0;title\x07\x9b31m",
    "\u202ecod.exe",
    "\t=1",
    "\r\n@SUM(1)",
    "\uff1d1",
    "\udc9b",
)
FORMULAS = "=+-@\uff1d\uff0b\uff0d\uff20"


@st.composite
def records(draw: st.DrawFn) -> list[Record]:
    """A few records of one VM, with any text in each field."""
    vm = draw(TEXT)
    events = draw(st.lists(st.sampled_from(Event), min_size=1, max_size=5))
    return [record(event, number, vm, draw(TEXT), draw(TEXT)) for number, event in enumerate(events)]


def record(event: Event, number: int, vm: str, text: str, name: str) -> Record:
    """A record that says the same in each field."""
    return Record(
        time=BEGIN + timedelta(seconds=number),
        event=event,
        message=text,
        vm=vm,
        run=text,
        generation=1,
        fingerprints={name: text},
        credentials=(name,),
        unit=text,
        channel=text,
        boot="1",
        invocation=str(number),
    )


def shown(show: Callable[[], object]) -> str:
    """What is printed meanwhile."""
    output = io.StringIO(newline="")
    with redirect_stdout(output):
        show()
    return output.getvalue()


def assert_harmless(text: str, end: str = "\n") -> None:
    """Nothing but printable text and ends of lines; and it can be written as UTF-8."""
    assert all(line.isprintable() for line in text.split(end)), ascii(text)
    text.encode()


@given(TEXT)
def test_text_is_made_printable(text: str) -> None:
    """Text becomes one printable line; printable text stays as it is, also the second time."""
    done = printable(text)
    assert_harmless(done)
    assert "\n" not in done
    assert printable(done) == done
    assert done == text or not text.isprintable()


@given(TEXT)
@example(EVIL[0])
@example(EVIL[4])
def test_a_cell_is_no_formula(text: str) -> None:
    """A spreadsheet finds text in each cell; numbers stay numbers."""
    done = cell(text)
    assert_harmless(done)
    assert not done.strip().startswith(tuple(FORMULAS))
    assert done.removeprefix("'") == printable(text).removeprefix("'")
    assert cell(-1.5) == -1.5


@given(
    st.recursive(TEXT | st.integers() | st.none(), lambda each: st.lists(each) | st.dictionaries(TEXT, each))
)
def test_json_holds_the_same(document: Any) -> None:  # noqa: ANN401 (any document)
    """What JSON says is not changed, only how it is written."""
    for indent in (None, 2):
        text = json_text(document, indent)
        assert_harmless(text)
        assert json.loads(text) == document


@given(records(), TEXT)
@example([record(event, 0, EVIL[0], EVIL[1], EVIL[2]) for event in Event], EVIL[6])
@example([record(event, 0, EVIL[3], EVIL[4], EVIL[5]) for event in Event], EVIL[1])
def test_every_form_of_the_audit(past: Sequence[Record], text: str) -> None:
    """Lines, tables, CSV, JSON and HTML: each form of each view."""
    history = History(tuple(past))
    ran = periods(history)
    story: Story = tell(past, ran)
    period_rows = list(forms.period_rows(ran))
    record_rows = [forms.record_row(each) for each in past]
    for_people = (
        *(lambda line=line: say(line) for line in forms.story_lines(story)),
        *(lambda each=each: say(forms.record_line(each)) for each in past),
        lambda: print_table(["A", "B"], [["a", text], *(forms.period_line(row)[:2] for row in period_rows)]),
        lambda: print_json([forms.rotation_row(each) for each in story.rotations]),
        lambda: print_json(record_rows),
        lambda: print_json(period_rows),
        lambda: say(json_text(msgspec.to_builtins(record_rows[0]))),
    )
    for show in for_people:
        assert_harmless(shown(show))
    assert_harmless(page(story, ran))
    tables: tuple[tuple[Sequence[str], Sequence[Document]], ...] = (
        (forms.ROTATION_COLUMNS, [forms.rotation_row(each) for each in story.rotations]),
        (forms.RECORD_COLUMNS, record_rows),
        (forms.PERIOD_COLUMNS, period_rows),
    )
    for columns, rows in tables:
        table = shown(lambda columns=columns, rows=rows: forms.write_csv(columns, rows))  # type: ignore[misc]  # defaults bind them
        assert_harmless(table, "\r\n")
        for line in csv.reader(io.StringIO(table, newline="")):
            assert not any(each.strip().startswith(tuple(FORMULAS)) for each in line), line
