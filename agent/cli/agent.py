# SPDX-License-Identifier: MIT
"""``credferry agent``: the daemon, where it is not called as units call it."""

from __future__ import annotations

import typer

from credferry.agent.cli.common import DEFAULT_CONFIG, ConfigOption


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @app.command("agent")
    def agent(config: ConfigOption = DEFAULT_CONFIG) -> None:
        """Watch the source, seal changes, and restart the VMs that use them. Runs until SIGTERM."""
        from credferry.agent.daemon import (  # noqa: PLC0415 (of no use to other verbs, and not quickly loaded)
            main as daemon,
        )

        daemon.run(config)
