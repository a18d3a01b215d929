# SPDX-License-Identifier: MIT
"""The tables that ``credferry status`` prints: a summary, and the VMs with what needs attention first."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from credferry.agent.cli import tables
from credferry.agent.cli.terminal import say
from credferry.agent.cli.times import moment
from credferry.agent.reconcile.decision import State
from credferry.agent.reconcile.status import Arrival

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence
    from datetime import tzinfo

    from credferry.agent.cli.documents import Generation, StatusRow

_HEADINGS = (
    *("VM", "UNIT", "STATE", "SINCE", "PUBLISHED", "SEALED", "RUNNING", "SYSTEM"),
    *("LAST RESULT", tables.REASON),
)
_SHORT_HEADINGS = (
    *("VM", "STATE", "SINCE", "PUBLISHED", "SEALED", "RUNNING", "SYSTEM"),
    tables.REASON,
)
_LEAVE_OUT = ("SYSTEM", "PUBLISHED", "SINCE", "RUNNING")
_NO_AGENT = "no agent"
"""Shown in place of a state that an agent would end by itself, where none runs."""
_URGENCY = (
    *(State.FAILED, State.REFUSED, State.HALTED, State.NO_UNIT, _NO_AGENT, State.APPROVAL, State.WAITING),
    *(State.RESTART_DUE, State.PUSH_DUE, State.SEAL_DUE, State.CHANGING),
    *(State.ROLLED_BACK, State.HELD, State.IGNORED, State.STOPPED),
)
"""States in the order of the table. Others stand between these and `State.IN_STEP`, which is last."""
_DUE = frozenset({State.RESTART_DUE, State.PUSH_DUE, State.SEAL_DUE, State.WAITING})
_COLOURS = {
    State.IN_STEP: "green",
    State.RESTART_DUE: "yellow",
    State.PUSH_DUE: "yellow",
    State.CHANGING: "yellow",
    State.WAITING: "yellow",
    State.APPROVAL: "yellow",
    State.ROLLED_BACK: "yellow",
    State.REFUSED: "red",
    State.FAILED: "red",
    State.HALTED: "red",
    State.NO_UNIT: "red",
}


def ordered(rows: Iterable[StatusRow]) -> list[StatusRow]:
    """What needs attention first; VMs of one state in the order of the configuration."""
    return sorted(rows, key=_urgency)


def summary(rows: Sequence[StatusRow]) -> str:
    """How many VMs are in which state, in the order of the table."""
    counts = Counter(shown_state(row) for row in ordered(rows))
    vms = "1 VM" if len(rows) == 1 else f"{len(rows)} VMs"
    return f"{vms}: {', '.join(f'{count} {state}' for state, count in counts.items())}" if rows else vms


def shown_state(row: StatusRow) -> str:
    """A VM's state in words, with what else an operator must know at the first look."""
    state = _NO_AGENT if _lacks_agent(row) else row.state.value
    return f"{state}, held" if row.held and row.state is not State.HELD else state


def print_rows(rows: Sequence[StatusRow], where: tzinfo | None) -> None:
    """Print a summary and a short table on a terminal, else a table with all columns."""
    columns = tables.width()
    if columns is None:
        tables.print_table(_HEADINGS, [_cells(row, where) for row in ordered(rows)])
        return
    say(summary(rows))
    for line, style in lines(rows, columns, where):
        say(line, style)


def lines(
    rows: Sequence[StatusRow],
    columns: int,
    where: tzinfo | None,
    changed: Collection[str] | None = None,
) -> list[tuple[str, str]]:
    """The short table's lines, each with its style. With ``changed``, the VMs in it are marked."""
    sorted_rows = ordered(rows)
    cells = [_short_cells(row, where) for row in sorted_rows]
    if changed is not None:
        for row, each in zip(sorted_rows, cells, strict=True):
            each[0] = f"{'*' if row.vm in changed else ' '} {row.vm}"
    headings = ("  VM", *_SHORT_HEADINGS[1:]) if changed is not None else _SHORT_HEADINGS
    return [
        (line.text, "bold" if line.row is None else _style(sorted_rows[line.row], changed or ()))
        for line in tables.layout(headings, cells, columns, _LEAVE_OUT)
    ]


def fitted(
    rows: Sequence[StatusRow],
    columns: int,
    height: int,
    where: tzinfo | None,
    changed: Collection[str] = (),
) -> list[tuple[str, str]]:
    """As `lines`, in at most so many lines of a terminal; the last one counts the VMs that are left out."""
    rows = ordered(rows)
    for count in range(min(len(rows), height), 0, -1):  # each row takes a line at least
        found, left = lines(rows[:count], columns, where, changed), rows[count:]
        if left:
            found.append((f"  and {len(left)} more: {summary(left).partition(': ')[2]}", ""))
        if sum(max(1, -(-len(line) // columns)) for line, _ in found) <= height:
            return found
    return [(summary(rows), "")]


def key(row: StatusRow) -> tuple[object, ...]:
    """What makes a row a changed one if it differs."""
    return (row.state, row.held, row.sealed, row.running)


def _urgency(row: StatusRow) -> int:
    if _lacks_agent(row):
        return _URGENCY.index(_NO_AGENT)
    if row.state in _URGENCY:
        return _URGENCY.index(row.state)
    return len(_URGENCY) + (row.state is State.IN_STEP)


def _lacks_agent(row: StatusRow) -> bool:
    return not row.agent and row.state in _DUE


def _style(row: StatusRow, changed: Collection[str]) -> str:
    return "marked" if row.vm in changed else _COLOURS.get(row.state, "")


def _cells(row: StatusRow, where: tzinfo | None) -> list[str]:
    return [
        row.vm,
        row.unit_state,
        shown_state(row),
        moment(row.since, where) if row.since else "-",
        row.published.digest or "-",
        _generation(row.sealed),
        _generation(row.running) + _pushed(row),
        row.system or "-",
        "-" if row.last_result in row.reasons else row.last_result or "-",
        _reason(row),
    ]


def _short_cells(row: StatusRow, where: tzinfo | None) -> list[str]:
    is_told = row.reasons or row.state is State.IN_STEP or _lacks_agent(row)
    return [
        row.vm,
        shown_state(row),
        moment(row.since, where) if row.since else "-",
        row.published.digest or "-",
        str(row.sealed.generation) if row.sealed else "-",
        (str(row.running.generation) if row.running else "-") + _pushed(row),
        row.system or "-",
        _reason(row) if is_told else row.last_result or row.unit_state,
    ]


def _reason(row: StatusRow) -> str:
    reason = "; ".join(row.reasons)
    if not _lacks_agent(row):
        return reason
    return f"{row.state.value}, once an agent runs" + (f"; {reason}" if reason else "")


def _pushed(row: StatusRow) -> str:
    return ", pushed" if row.arrived is Arrival.PUSH else ""


def _generation(cell: Generation | None) -> str:
    if cell is None:
        return "-"
    return f"{cell.generation} ({cell.digest})" if cell.digest else str(cell.generation)
