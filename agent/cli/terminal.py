# SPDX-License-Identifier: MIT
"""What is printed for people: on a terminal, or into a pipe that another program folds."""

from __future__ import annotations

import os
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

from credferry.agent.printable import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_STYLES = {
    "bold": "1",
    "red": "31",
    "green": "32",
    "yellow": "33",
    "cyan": "36",
    "dim": "2",
    "marked": "1;7",
}
_MARK, _END = "\x1b[{}m", "\x1b[0m"
_CLEAR = "\r\x1b[2K"
_PATIENCE_SECONDS = 1.0
_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
"""The terminal's second screen, without a cursor; and back."""


def has_colours() -> bool:
    """Whether standard output is a terminal whose user wants colours (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def styled(line: str, style: str = "") -> str:
    """A line made harmless, in a style where there are colours."""
    shown = printable(line)
    return f"{_MARK.format(_STYLES[style])}{shown}{_END}" if style and has_colours() else shown


def say(line: str, style: str = "") -> None:
    """Print a line on standard output."""
    sys.stdout.write(f"{styled(line, style)}\n")


def warn(line: str) -> None:
    """Print a line on standard error, after what was printed on standard output before."""
    sys.stdout.flush()
    sys.stderr.write(f"credferry: {printable(' '.join(line.split()))}\n")


class Progress:
    """A line on standard error about what takes longer than a second, on a terminal only; then gone."""

    def __init__(self) -> None:
        self._shows_at = time.monotonic() + _PATIENCE_SECONDS
        self._is_shown = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_shown:
            sys.stderr.write(_CLEAR)
            sys.stderr.flush()

    def tell(self, line: str) -> None:
        """Show a line in place of the one before."""
        if time.monotonic() >= self._shows_at and sys.stderr.isatty():
            sys.stderr.write(f"{_CLEAR}{printable(line)}")
            sys.stderr.flush()
            self._is_shown = True


@contextmanager
def screen() -> Iterator[None]:
    """Within this context, `draw` has the whole terminal, which then shows again what it showed before."""
    sys.stdout.write(_ENTER)
    try:
        yield
    finally:
        sys.stdout.write(_LEAVE)
        sys.stdout.flush()


def draw(lines: Iterable[tuple[str, str]]) -> None:
    """Show lines, each with its style, in place of those that the screen has."""
    shown = "".join(f"{styled(line, style)}\x1b[K\r\n" for line, style in lines)
    sys.stdout.write(f"\x1b[H{shown}\x1b[J")
    sys.stdout.flush()
