# SPDX-License-Identifier: MIT
"""How ``credferry doctor`` shows findings: what is not well, then one line that counts everything."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from credferry.agent.doctor.finding import Severity
from credferry.agent.printable import printable

if TYPE_CHECKING:
    from credferry.agent.doctor.finding import Finding

_STYLES = {Severity.OK: "green", Severity.HINT: "yellow", Severity.PROBLEM: "red"}
_INDENT = "  "


def lines(
    findings: Sequence[Finding], columns: int | None, *, show_all: bool = False
) -> Iterator[tuple[str, str]]:
    """The lines about findings, each with its style: problems first, and what is well only if asked for."""
    for severity in (Severity.PROBLEM, Severity.HINT, Severity.OK):
        for finding in findings:
            if finding.severity is severity and (show_all or severity is not Severity.OK):
                yield from _lines(finding, columns)


def summary(findings: Iterable[Finding], *, show_all: bool = False) -> str:
    """One line at the end."""
    counts = Counter(finding.severity for finding in findings)
    said = ", ".join(
        f"{counts[severity]} {severity.value}{'s' * (is_noun and counts[severity] != 1)}"
        for severity, is_noun in ((Severity.PROBLEM, True), (Severity.HINT, True), (Severity.OK, False))
    )
    return said if show_all or not counts[Severity.OK] else f"{said} (--all shows them)"


def _lines(finding: Finding, columns: int | None) -> Iterator[tuple[str, str]]:
    about = f"{finding.vm}: " if finding.vm else ""
    yield f"{finding.severity.value}: {about}{finding.check}", _STYLES[finding.severity]
    for label, text in (("", finding.what), ("why: ", finding.why), ("do:  ", finding.remedy)):
        if text:
            yield from ((line, "") for line in _wrapped(f"{label}{printable(text)}", columns))
    for command in finding.commands:
        # Not wrapped: it is there to be copied.
        yield f"{_INDENT}     # {command}", "cyan"


def _wrapped(text: str, columns: int | None) -> list[str]:
    if columns is None:
        return [f"{_INDENT}{text}"]
    return textwrap.wrap(
        text,
        max(columns, 2 * len(_INDENT) + 40),
        initial_indent=_INDENT,
        subsequent_indent=_INDENT + "     " * text.startswith(("why: ", "do:  ")),
        break_long_words=False,
        break_on_hyphens=False,
    )
