# SPDX-License-Identifier: MIT
"""``credferry check``: the configuration, without touching anything else."""

from __future__ import annotations

import typer

from agent.cli.common import DEFAULT_CONFIG, ConfigOption, JsonOption, print_json, print_table
from agent.config import load


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @app.command("check")
    def check(config: ConfigOption = DEFAULT_CONFIG, json: JsonOption = False) -> None:
        """Check the configuration file, and show what each VM is to get."""
        loaded = load(config)
        rows = [
            {
                "vm": vm.name,
                "unit": vm.unit,
                "channel": vm.channel.value,
                "credential": name,
                "kind": vm.kind(name).value,
                "from": credential.secret if credential.secret is not None else "the configuration",
            }
            for vm in loaded.vms.values()
            for name, credential in vm.credentials.items()
        ]
        if json:
            print_json(rows)
        else:
            print_table(
                ["VM", "UNIT", "CHANNEL", "CREDENTIAL", "KIND", "FROM"], [list(row.values()) for row in rows]
            )
