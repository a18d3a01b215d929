# SPDX-License-Identifier: MIT
"""``credferry agent``: the daemon."""

from __future__ import annotations

import typer

from agent.cli.common import DEFAULT_CONFIG, ConfigOption, connect


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @app.command("agent")
    def agent(config: ConfigOption = DEFAULT_CONFIG) -> None:
        """Watch the source, seal what changes, restart the VMs concerned. Runs until SIGTERM."""
        from agent.service import Service  # noqa: PLC0415 (watchdog and systemd are of no use to other verbs)

        Service(config, connect).run()
