# SPDX-License-Identifier: MIT
"""What is printed for people: on a terminal, or into a pipe that another program folds."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from credferry.agent.printable import printable

if TYPE_CHECKING:
    from rich.console import Console

_PIPE_COLUMNS = 10_000


def say(line: str) -> None:
    """Print a line on standard output."""
    sys.stdout.write(f"{printable(line)}\n")


def console() -> Console:
    """Where tables go: in colour, and fitted, on a terminal only."""
    from rich.console import Console  # noqa: PLC0415 (takes longer than what it is not needed for)

    if sys.stdout.isatty():
        return Console(highlight=False)
    made = Console(soft_wrap=True, highlight=False)
    made.width = _PIPE_COLUMNS  # what reads a pipe does its own folding
    return made
