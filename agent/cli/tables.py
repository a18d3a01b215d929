# SPDX-License-Identifier: MIT
"""Tables for people: fitted to a terminal's width without cutting a name, whole in a pipe.

On a terminal, columns that may be left out leave in their order until the others fit, and a long reason
stands below its row. A pipe gets every column, and one line for each row.
"""

from __future__ import annotations

import shutil
import sys
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING

from credferry.agent.cli.terminal import say
from credferry.agent.printable import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

REASON = "REASON"
"""The heading of the column that goes below its row where it is too long. It comes last."""
_GAP = "  "
_BELOW = "    "
_NOTHING = frozenset({"", "-"})
_NARROWEST = 40


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a table, and the row that it belongs to; None for the headings."""

    text: str
    row: int | None


def width() -> int | None:
    """Columns of the terminal that standard output is; None for a pipe, which does its own folding."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def layout(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    columns: int | None,
    leave_out: Sequence[str] = (),
) -> list[Line]:
    """The lines of a table with at most so many columns; None for any number of them.

    ``leave_out`` names headings, the first to go first. One of them whose cells are all empty goes anyway.
    """
    cells = [[printable(cell) for cell in row] for row in rows]
    columns_of = [*zip(*cells, strict=True)] or [()] * len(headings)
    table: dict[str, tuple[str, ...]] = dict(zip(headings, columns_of, strict=True))
    notes = list(table.pop(REASON, ()))
    if columns is not None:
        for heading in leave_out:
            if heading in table and _NOTHING.issuperset(table[heading]):
                del table[heading]
        for heading in leave_out:
            if _width(table) > columns:
                table.pop(heading, None)
    is_inline = columns is None or _width(table) + len(_GAP) + max(map(len, notes), default=0) <= columns
    if REASON in headings and is_inline and (columns is None or any(notes)):
        table[REASON] = tuple(notes)
        notes = []
    elif is_inline:
        notes = []
    widths = [_widest(heading, column) for heading, column in table.items()]
    lines = [Line(_row(tuple(table), widths), None)]
    for number, row in enumerate(zip(*table.values(), strict=True)):
        lines.append(Line(_row(row, widths), number))
        if notes and notes[number]:
            lines += [Line(each, number) for each in folded(_BELOW, notes[number], columns)]
    return lines


def print_table(
    headings: Sequence[str], rows: Iterable[Sequence[str]], leave_out: Sequence[str] = ()
) -> None:
    """Print a table, fitted on a terminal."""
    for line in layout(headings, [*rows], width(), leave_out):
        say(line.text, "bold" if line.row is None else "")


def _width(table: dict[str, tuple[str, ...]]) -> int:
    return sum(_widest(*column) for column in table.items()) + len(_GAP) * (len(table) - 1)


def _widest(heading: str, column: Iterable[str]) -> int:
    return max(len(heading), *map(len, column), 0)


def _row(cells: Iterable[str], widths: Iterable[int]) -> str:
    return _GAP.join(f"{cell:<{size}}" for cell, size in zip(cells, widths, strict=True)).rstrip()


def folded(label: str, text: str, columns: int | None) -> list[str]:
    """A text behind its label, on as many lines as it needs. No word is broken: commands can be copied."""
    if columns is None:
        return [f"{label}{printable(text)}".rstrip()]
    return textwrap.wrap(
        printable(text),
        max(columns, len(label) + _NARROWEST),
        initial_indent=label,
        subsequent_indent=" " * len(label),
        break_long_words=False,
        break_on_hyphens=False,
    )
