# SPDX-License-Identifier: MIT
"""The tables that ``credferry fleet status`` prints: groups, who holds their slots, and hosts."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from credferry.agent.cli import tables
from credferry.agent.cli.show_views import age
from credferry.agent.cli.terminal import say
from credferry.agent.cli.times import moment

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import tzinfo

    from credferry.agent.cli.documents import FleetGroupRow, FleetHaltRow

_GROUPS = ("GROUP", "LIMIT", "HELD", "HOSTS", "STATE", tables.REASON)
_SLOTS = ("GROUP", "SLOT", "HOST", "VM", "AGE", "SINCE", "CHANGE")
_HOSTS = ("GROUP", "HOST", "VERSION", "VMS")
_UNREADABLE = "cannot be read"


def print_rows(rows: Sequence[FleetGroupRow], where: tzinfo | None) -> None:
    """Print the tables, fitted on a terminal."""
    for line, style in lines(rows, tables.width(), where, datetime.now(UTC)):
        say(line, style)


def screen_lines(rows: Sequence[FleetGroupRow], head: str) -> list[tuple[str, str]]:
    """What fits on the terminal; the last line says that more is left out."""
    size = shutil.get_terminal_size()
    found = [(head, "bold"), *lines(rows, size.columns, None, datetime.now(UTC))]
    if len(found) < size.lines:
        return found
    return [*found[: size.lines - 2], ("…  see all with: credferry fleet status", "yellow")]


def lines(
    rows: Sequence[FleetGroupRow], columns: int | None, where: tzinfo | None, now: datetime
) -> Iterator[tuple[str, str]]:
    """The lines of all tables, each with its style."""
    yield from _table(_GROUPS, [_group(row, where) for row in rows], columns, ("HOSTS",), _styles(rows))
    slots = [
        [
            row.group,
            "-" if each.slot is None else str(each.slot),
            each.host or _UNREADABLE,
            each.vm or "-",
            age(datetime.fromisoformat(each.since), now) if each.since else "-",
            moment(each.since, where) if each.since else "-",
            each.change[:8] or "-",
        ]
        for row in rows
        for each in row.held
    ]
    if slots:
        yield "", ""
        yield from _table(_SLOTS, slots, columns, ("CHANGE", "SINCE"))
    hosts = [
        [
            row.group,
            each.host,
            each.version,
            ", ".join(f"{count} {state}" for state, count in each.vms.items()),
        ]
        for row in rows
        for each in row.hosts
    ]
    if hosts:
        yield "", ""
        yield from _table(_HOSTS, hosts, columns, ("VERSION",))


def _group(row: FleetGroupRow, where: tzinfo | None) -> list[str]:
    return [
        row.group,
        _UNREADABLE if row.limit is None else str(row.limit),
        str(len(row.held)),
        str(len(row.hosts)),
        _state(row),
        "" if row.halt is None else _halt(row.halt, where),
    ]


def _state(row: FleetGroupRow) -> str:
    if row.halt is not None:
        return "halted"
    if row.limit is None:
        return "no limit"
    return "full" if len(row.held) >= row.limit else "free"


def _halt(halt: FleetHaltRow, where: tzinfo | None) -> str:
    since = f" since {moment(halt.since, where)}" if halt.since else ""
    who = f"{halt.vm} on {halt.host}" if halt.vm else f"an operator on {halt.host}"
    return f"{who}: {halt.why}{since}" if halt.host else halt.why


def _styles(rows: Sequence[FleetGroupRow]) -> list[str]:
    return ["red" if row.halt is not None or row.limit is None else "" for row in rows]


def _table(
    headings: Sequence[str],
    cells: Sequence[Sequence[str]],
    columns: int | None,
    leave_out: Sequence[str],
    styles: Sequence[str] = (),
) -> Iterator[tuple[str, str]]:
    for line in tables.layout(headings, cells, columns, leave_out):
        of_row = "" if line.row is None or not styles else styles[line.row]
        yield line.text, "bold" if line.row is None else of_row
