# SPDX-License-Identifier: MIT
"""Makes text of other users harmless for terminals and spreadsheets. All output of the command passes here.

A VM's own records, names of units and files, and systemd's reasons may contain any character: commands for
the terminal, controls that reorder a line, and formulas that a spreadsheet evaluates.
"""

from __future__ import annotations

import json
from typing import Any

_FORMULAS = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""Characters that start a formula in a spreadsheet cell. The last four are the fullwidth forms."""


def printable(text: str) -> str:
    """Text on one line. A hexadecimal escape replaces each character that is not printable.

    Those are control characters, line ends, controls of the writing direction, invisible characters, and
    bytes that are not text. Printable text is returned unchanged.
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def printable_lines(text: str) -> str:
    """As `printable`, but line ends stay."""
    return "\n".join(map(printable, text.split("\n")))


def cell(value: Any) -> Any:  # noqa: ANN401 (whatever a row of CSV holds)
    """A value as a cell of CSV. A ``'`` is put before text that a spreadsheet would evaluate.

    See: OWASP, CSV Injection.
    """
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.lstrip().startswith(_FORMULAS) else text


def json_text(document: Any, indent: int | None = None) -> str:  # noqa: ANN401 (whatever JSON takes)
    """A document as JSON: the same data, with characters that are not printable escaped."""
    text = json.dumps(document, indent=indent, ensure_ascii=False)
    return "\n".join(
        line
        if line.isprintable()
        else "".join(each if each.isprintable() else json.dumps(each)[1:-1] for each in line)
        for line in text.split("\n")
    )
