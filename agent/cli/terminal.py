# SPDX-License-Identifier: MIT
"""What is printed for people: on a terminal, or into a pipe that another program folds."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

_PIPE_COLUMNS = 10_000


def printable(text: str) -> str:
    """Without what a terminal obeys: names, and what units and files of a host say, may be anything."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def console() -> Console:
    """Where tables go: in colour, and fitted, on a terminal only."""
    from rich.console import Console  # noqa: PLC0415 (takes longer than what it is not needed for)

    if sys.stdout.isatty():
        return Console(highlight=False)
    made = Console(soft_wrap=True, highlight=False)
    made.width = _PIPE_COLUMNS  # what reads a pipe does its own folding
    return made
