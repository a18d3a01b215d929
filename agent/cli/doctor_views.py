# SPDX-License-Identifier: MIT
"""How ``credferry doctor`` shows findings: what is not well, then one line that counts everything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from credferry.agent.cli import tables
from credferry.agent.doctor.finding import AS_ROOT, Severity, hint

if TYPE_CHECKING:
    from credferry.agent.doctor.finding import Finding

_STYLES = {Severity.OK: "green", Severity.HINT: "yellow", Severity.PROBLEM: "red"}
_INDENT = "  "


def lines(
    findings: Sequence[Finding], columns: int | None, *, show_all: bool = False
) -> Iterator[tuple[str, str]]:
    """The lines about findings, each with its style: problems first, and what is well only if asked for.

    What only root can look at is one finding, unless everything is asked for.
    """
    unseen = [each for each in findings if each.remedy == AS_ROOT and not show_all]
    for severity in (Severity.PROBLEM, Severity.HINT, Severity.OK):
        if unseen and severity is Severity.HINT:
            yield from _lines(_gathered(unseen), columns)
        for finding in findings:
            if finding in unseen:
                continue
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


def _gathered(unseen: Sequence[Finding]) -> Finding:
    checks = ", ".join(dict.fromkeys(each.check for each in unseen))
    what = f"cannot look: {len(unseen)} checks need root: {checks}"
    return hint("root", what, remedy=AS_ROOT)


def _lines(finding: Finding, columns: int | None) -> Iterator[tuple[str, str]]:
    about = f"{finding.vm}: " if finding.vm else ""
    yield f"{finding.severity.value}: {about}{finding.check}", _STYLES[finding.severity]
    for label, text in (("", finding.what), ("why: ", finding.why), ("do:  ", finding.remedy)):
        if text:
            yield from ((line, "") for line in tables.folded(f"{_INDENT}{label}", text, columns))
    for command in finding.commands:
        # Not folded: it is there to be copied.
        yield f"{_INDENT}     # {command}", "cyan"
