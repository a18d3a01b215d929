# SPDX-License-Identifier: MIT
"""``credferry doctor``: the whole chain on this host, and what to do about each finding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from credferry.agent.cli import tables
from credferry.agent.cli.common import DEFAULT_CONFIG, ConfigOption, JsonOption, print_json
from credferry.agent.cli.selection import SomeVmArguments, VmOption, named
from credferry.agent.cli.terminal import Progress, say
from credferry.agent.errors import ExitStatus

SCHEMA_VERSION = 1
_SEVERITIES = ("ok", "hint", "problem")


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @app.command("doctor")
    def doctor(
        vms: SomeVmArguments = None,
        *,
        config: ConfigOption = DEFAULT_CONFIG,
        vm: VmOption = None,
        show_all: Annotated[
            bool, typer.Option("--all", help="Show also what is well, not only how much it is.")
        ] = False,
        json: JsonOption = False,
    ) -> None:
        """Check the whole chain on this host, change nothing, and say what to do about each finding.

        Ends with status 1 if there is a problem.
        """
        from credferry.agent.cli import doctor_views as views  # noqa: PLC0415 (see below)
        from credferry.agent.doctor.examination import examine  # noqa: PLC0415 (not for --help)
        from credferry.agent.doctor.finding import Severity  # noqa: PLC0415 (see above)

        findings = []
        with Progress() as progress:
            for finding in examine(config, named(vms, vm)):
                findings.append(finding)
                progress.tell(f"checked {finding.vm or 'the host'}: {finding.check}")
        counts = Counter(finding.severity for finding in findings)
        if json:
            print_json(document(config, findings))
        else:
            for line, style in views.lines(findings, tables.width(), show_all=show_all):
                say(line, style)
            say(views.summary(findings, show_all=show_all))
        if counts[Severity.PROBLEM]:
            raise typer.Exit(ExitStatus.FAILED)


def document(file: Path, findings: Sequence[Any]) -> dict[str, Any]:
    """The findings as ``--json`` has them: docs/doctor.md says what each key holds."""
    counts = Counter(finding.severity.value for finding in findings)
    return {
        "version": SCHEMA_VERSION,
        "configuration": str(file),
        "counts": {severity: counts[severity] for severity in _SEVERITIES},
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
