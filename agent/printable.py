# SPDX-License-Identifier: MIT
"""Text from others, made harmless for whoever shows it. All output of the command passes through here.

A VM's own records, names of units and files, and reasons that systemd gives may hold anything: what a
terminal obeys, what reorders a line, and what a spreadsheet evaluates.
"""

from __future__ import annotations

import json
from typing import Any

_FORMULAS = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""What a spreadsheet takes for a formula at a cell's beginning; the last four are the fullwidth forms."""


def printable(text: str) -> str:
    """Text on one line, with an escape in hexadecimal for each character that does not just print.

    Those are control characters, ends of lines, controls of the writing direction, invisible characters, and
    bytes that are no text. Printable text is returned as it is.
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def printable_lines(text: str) -> str:
    """The same, but for ends of lines, which stay."""
    return "\n".join(map(printable, text.split("\n")))


def cell(value: Any) -> Any:  # noqa: ANN401 (whatever a row of CSV holds)
    """A value as a cell of CSV. Text that a spreadsheet would evaluate gets a ``'`` before it.

    See: OWASP, CSV Injection.
    """
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.lstrip().startswith(_FORMULAS) else text


def json_text(document: Any, indent: int | None = None) -> str:  # noqa: ANN401 (whatever JSON takes)
    """A document as JSON: the same data, escaped where it does not just print."""
    text = json.dumps(document, indent=indent, ensure_ascii=False)
    return "\n".join(
        line
        if line.isprintable()
        else "".join(each if each.isprintable() else json.dumps(each)[1:-1] for each in line)
        for line in text.split("\n")
    )
