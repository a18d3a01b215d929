# SPDX-License-Identifier: MIT
"""``credferry check``: the configuration, and whether the agent's units let it see the source."""

from __future__ import annotations

import typer

from agent.cli.common import DEFAULT_CONFIG, ConfigOption, JsonOption, print_json, print_table
from agent.config import Config, load
from agent.errors import ConfigurationError


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @app.command("check")
    def check(config: ConfigOption = DEFAULT_CONFIG, json: JsonOption = False) -> None:
        """Check the configuration file, and show what each VM is to get."""
        loaded = load(config)
        _check_seen(loaded)
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


def _check_seen(config: Config) -> None:
    """Raise `ConfigurationError` for a source that is hidden from one of the agent's units.

    Where systemd does not answer, or has no such unit, the unit that is shipped is what counts.
    """
    from agent.doctor.source import hidden  # noqa: PLC0415 (not for --help)

    for _, found in hidden(config):
        raise ConfigurationError(f"{config.file}: source.path: {found.text}", hint=found.remedy)
