# SPDX-License-Identifier: MIT
"""``credferry audit``: the rotations, as the journal tells them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agent.cli.common import DEFAULT_CONFIG, ConfigOption, JsonOption, print_json, print_table


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @app.command("audit")
    def audit(
        config: ConfigOption = DEFAULT_CONFIG,
        vm: Annotated[str | None, typer.Option("--vm", help="Only this VM.", metavar="VM")] = None,
        directory: Annotated[
            Path | None, typer.Option("--directory", help="A journal elsewhere.", metavar="DIR")
        ] = None,
        json: JsonOption = False,
    ) -> None:
        """Tell what happened, from the journal alone: published, sealed, restarted, launched."""
        from agent import journal  # noqa: PLC0415 (libsystemd is of no use to other verbs)

        if vm is not None and directory is None:
            from agent.config import load  # noqa: PLC0415 (a journal elsewhere needs no configuration)

            load(config).vm(vm)
        records = list(journal.read(directory, vm=vm))
        if json:
            print_json(
                [
                    {
                        "time": record.time.isoformat(),
                        "event": record.event.label,
                        "vm": record.vm,
                        "run": record.run,
                        "generation": record.generation,
                        "fingerprints": dict(record.fingerprints),
                        "message": record.message,
                    }
                    for record in records
                ]
            )
        else:
            print_table(
                ["TIME (UTC)", "RUN", "EVENT", "WHAT"],
                [
                    [
                        record.time.strftime("%Y-%m-%d %H:%M:%S.%f")[:-3],
                        record.run[:8] or "-",
                        record.event.label,
                        record.message,
                    ]
                    for record in records
                ],
            )
