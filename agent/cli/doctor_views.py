# SPDX-License-Identifier: MIT
"""How ``credferry doctor`` shows findings: what is not well, then one line that counts everything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from credferry.agent.cli import tables
from credferry.agent.doctor.finding import AS_ROOT, Finding, Severity, hint

_STYLES = {Severity.OK: "green", Severity.HINT: "yellow", Severity.PROBLEM: "red"}
_INDENT = "  "
_VM = "\0"
"""Stands for a VM's name in text."""
_MERGED_MIN = 3


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
        seen = [each for each in findings if each not in unseen]
        for finding in seen if show_all else _merged(seen):
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


def _merged(findings: Iterable[Finding]) -> Iterator[Finding]:
    """Findings that say the same of several VMs, as one; the others as they are, in their order."""
    groups: dict[Finding, list[Finding]] = {}
    for finding in findings:
        groups.setdefault(_generic(finding), []).append(finding)
    for generic, group in groups.items():
        if len(group) < _MERGED_MIN:
            yield from group
            continue
        vms = [each.vm for each in group]
        commands = generic.commands
        if commands:
            loop = "; ".join(commands).replace(_VM, "${vm}")
            commands = (f"for vm in {' '.join(vms)}; do {loop}; done",)
        what = f"{generic.what.replace(_VM, 'each')}: {', '.join(vms)}"
        why, remedy = (text.replace(_VM, "VM") for text in (generic.why, generic.remedy))
        yield Finding(generic.severity, generic.check, what, f"{len(vms)} VMs", why, remedy, commands)


def _generic(finding: Finding) -> Finding:
    """A finding without its VM's name."""
    if not finding.vm:
        return finding
    what, why, remedy, *commands = (
        text.replace(finding.vm, _VM)
        for text in (finding.what, finding.why, finding.remedy, *finding.commands)
    )
    return Finding(finding.severity, finding.check, what, _VM, why, remedy, tuple(commands))


def _lines(finding: Finding, columns: int | None) -> Iterator[tuple[str, str]]:
    about = f"{finding.vm}: " if finding.vm else ""
    yield f"{finding.severity.value}: {about}{finding.check}", _STYLES[finding.severity]
    for label, text in (("", finding.what), ("why: ", finding.why), ("do:  ", finding.remedy)):
        if text:
            yield from ((line, "") for line in tables.folded(f"{_INDENT}{label}", text, columns))
    for command in finding.commands:
        # Not folded: it is there to be copied.
        yield f"{_INDENT}     # {command}", "cyan"
