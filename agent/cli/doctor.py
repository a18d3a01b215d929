# SPDX-License-Identifier: MIT
"""``credferry doctor``: the whole chain on this host, and what to do about each finding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import typer

from credferry.agent.cli.common import DEFAULT_CONFIG, ConfigOption, JsonOption, VmOption, cells, print_json
from credferry.agent.cli.terminal import console
from credferry.agent.errors import ExitStatus
from credferry.agent.printable import printable

SCHEMA_VERSION = 1
_STYLES = {"ok": "green", "hint": "yellow", "problem": "bold red"}


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @app.command("doctor")
    def doctor(config: ConfigOption = DEFAULT_CONFIG, vm: VmOption = None, json: JsonOption = False) -> None:
        """Check the whole chain on this host, change nothing, and say what to do about each finding.

        Ends with status 1 if there is a problem.
        """
        from credferry.agent.doctor.examination import examine  # noqa: PLC0415 (not for --help)
        from credferry.agent.doctor.finding import Severity  # noqa: PLC0415 (see above)

        findings = list(examine(config, vm or ()))
        counts = Counter(finding.severity for finding in findings)
        if json:
            print_json(document(config, findings))
        else:
            _print(findings)
            print_summary(counts)
        if counts[Severity.PROBLEM]:
            raise typer.Exit(ExitStatus.FAILED)


def document(file: Path, findings: Sequence[Any]) -> dict[str, Any]:
    """The findings as ``--json`` has them: docs/doctor.md says what each key holds."""
    counts = Counter(finding.severity.value for finding in findings)
    return {
        "version": SCHEMA_VERSION,
        "configuration": str(file),
        "counts": {severity: counts[severity] for severity in _STYLES},
        "findings": [
            {
                "severity": finding.severity.value,
                "check": finding.check,
                "vm": finding.vm or None,
                "what": finding.what,
                "why": finding.why,
                "remedy": finding.remedy,
                "commands": list(finding.commands),
            }
            for finding in findings
        ],
    }


def print_summary(counts: Counter[Any]) -> None:
    """One line at the end."""
    problems, hints = counts["problem"], counts["hint"]
    typer.echo(f"{problems} problem(s), {hints} hint(s), {counts['ok']} ok")


def _print(findings: Iterable[Any]) -> None:
    """A table; below each finding that is not well, why it matters and what mends it."""
    from rich.table import Table  # noqa: PLC0415 (takes longer than what it is not needed for)
    from rich.text import Text  # noqa: PLC0415 (see above)

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("", "VM", "CHECK"):
        table.add_column(heading, no_wrap=True)
    table.add_column("FINDING", overflow="fold")
    for finding in findings:
        text = Text(printable(finding.what))
        for label, content in (("why: ", finding.why), ("do:  ", finding.remedy)):
            if content:
                text.append(f"\n{label}{printable(content)}")
        for command in finding.commands:
            text.append(f"\n     # {printable(command)}", style="cyan")
        severity = Text(finding.severity.value, style=_STYLES[finding.severity.value])
        table.add_row(severity, *cells([finding.vm or "-", finding.check]), text)
    console().print(table, crop=False)
