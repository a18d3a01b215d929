# SPDX-License-Identifier: MIT
"""The tables that ``credferry status`` prints."""

from __future__ import annotations

import sys
from datetime import datetime
from typing import TYPE_CHECKING, Any

from credferry.agent.cli.common import cells, print_table
from credferry.agent.reconcile.decision import State

if TYPE_CHECKING:
    from credferry.agent.cli.documents import Generation, StatusRow

_HEADINGS = (
    *("VM", "UNIT", "STATE", "SINCE", "PUBLISHED", "SEALED", "RUNNING", "SYSTEM"),
    *("LAST RESULT", "REASON"),
)
_SHORT_HEADINGS = ("VM", "STATE", "SINCE", "SEALED", "RUNS", "SYSTEM", "REASON")
"""For terminals: the table fits into 80 columns if no VM has a reason."""
_COLOURS = {
    State.IN_STEP: "green",
    State.RESTART_DUE: "yellow",
    State.CHANGING: "yellow",
    State.WAITING: "yellow",
    State.REFUSED: "red",
    State.FAILED: "red",
    State.HALTED: "red",
    State.NO_UNIT: "red",
}


def print_rows(rows: list[StatusRow]) -> None:
    """Print a table: a short one on a terminal, else one with all columns."""
    is_terminal = sys.stdout.isatty()
    print_table(
        _SHORT_HEADINGS if is_terminal else _HEADINGS,
        [_short_cells(row) if is_terminal else _cells(row) for row in rows],
    )


def watched(rows: list[StatusRow], note: str, now: datetime) -> Any:  # noqa: ANN401 (rich is not loaded where it is not needed)
    """The table that ``--watch`` shows, as rich's own type. ``note`` stands below it, after the time."""
    from rich.table import Table  # noqa: PLC0415 (takes longer than what it is not needed for)

    caption = cells([f"{now:%H:%M:%S}  {note}".strip()])[0]
    table = Table(box=None, pad_edge=False, header_style="bold", caption=caption)
    for heading in _SHORT_HEADINGS:
        table.add_column(heading)
    for row in rows:
        table.add_row(*cells(_short_cells(row)), style=_COLOURS.get(row.state, ""))
    return table


def _cells(row: StatusRow) -> list[str]:
    return [
        row.vm,
        row.unit_state,
        row.state.value,
        _local(row.since),
        row.published.digest or "-",
        _generation(row.sealed),
        _generation(row.running),
        row.system or "-",
        row.last_result or "-",
        "; ".join(row.reasons),
    ]


def _short_cells(row: StatusRow) -> list[str]:
    is_told = row.reasons or row.state is State.IN_STEP
    return [
        row.vm,
        row.state.value,
        _local(row.since),
        str(row.sealed.generation) if row.sealed else "-",
        str(row.running.generation) if row.running else "-",
        row.system or "-",
        "; ".join(row.reasons) if is_told else row.last_result or row.unit_state,
    ]


def _local(since: str | None) -> str:
    if since is None:
        return "-"
    return datetime.fromisoformat(since).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _generation(cell: Generation | None) -> str:
    if cell is None:
        return "-"
    return f"{cell.generation} ({cell.digest})" if cell.digest else str(cell.generation)
