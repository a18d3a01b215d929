# SPDX-License-Identifier: MIT
"""Tables fit into a terminal, and lose no name for that."""

from __future__ import annotations

import pytest

from credferry.agent.cli import tables

LONG = "customer-api-gateway-eu-central-01"
HEADINGS = ("VM", "STATE", "SINCE", "SYSTEM", "REASON")
REASON = "rolled back to generation 1 by an operator; it stays there until its secrets change"


def texts(columns: int | None, *rows: tuple[str, ...], leave_out: tuple[str, ...] = ()) -> list[str]:
    """The lines of a table."""
    return [line.text for line in tables.layout(HEADINGS, rows, columns, leave_out)]


def test_a_pipe_gets_everything_on_one_line_for_each_row() -> None:
    """Without a width, no column is left out, and a reason stays in its row, however long."""
    row = (LONG, "failed", "2026-11-28 18:24:13 UTC", "-", REASON)
    lines = texts(None, row, leave_out=("SYSTEM", "SINCE"))
    assert [line.split("  ")[0] for line in lines] == ["VM", LONG]
    assert lines[1].endswith(REASON)


@pytest.mark.parametrize("columns", [36, 50, 60, 80, 100, 200])
def test_no_name_is_cut(columns: int) -> None:
    """At any width the whole name and state are there, and no line but that of a long name is too wide."""
    lines = texts(
        columns, (LONG, "failed", "2026-11-28 18:24:13 UTC", "older", REASON), leave_out=("SYSTEM", "SINCE")
    )
    assert lines[1].startswith(f"{LONG}  failed")
    assert max(map(len, lines)) <= max(columns, len(f"{LONG}  failed"))
    assert " ".join(" ".join(lines).split()).count(REASON) == 1


def test_columns_leave_in_their_order() -> None:
    """The first to go goes first, and no more columns go than must."""
    row = (LONG, "failed", "2026-11-28 18:24:13 UTC", "older", "")
    leave_out = ("SYSTEM", "SINCE")
    assert texts(80, row, leave_out=leave_out)[0].split() == ["VM", "STATE", "SINCE", "SYSTEM"]
    assert texts(70, row, leave_out=leave_out)[0].split() == ["VM", "STATE", "SINCE"]
    assert texts(60, row, leave_out=leave_out)[0].split() == ["VM", "STATE"]


def test_an_empty_column_goes_although_there_is_room() -> None:
    """A column without any content says nothing on a terminal, if it is one that may go."""
    row = ("web", "in step", "-", "-", "")
    assert texts(200, row, leave_out=("SYSTEM",))[0].split() == ["VM", "STATE", "SINCE"]


def test_short_reasons_stay_in_their_rows() -> None:
    """A reason goes below its row only where it does not fit beside it."""
    assert texts(80, ("web", "held", "-", "-", "by an operator"))[1].endswith("by an operator")
    below = texts(60, ("web", "held", "-", "-", REASON))
    assert "REASON" not in below[0]
    assert all(line.startswith("    ") for line in below[2:])


def test_a_table_without_rows_has_its_headings() -> None:
    """Nothing to show is a line of headings."""
    assert texts(None) == ["VM  STATE  SINCE  SYSTEM  REASON"]


def test_no_cell_commands_the_terminal() -> None:
    """A cell with an escape sequence shows it as text."""
    assert "\x1b" not in "".join(texts(80, ("web", "held", "-", "-", "\x1b[31mred")))
