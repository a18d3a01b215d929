# SPDX-License-Identifier: MIT
"""``credferry agent``: the daemon."""

from __future__ import annotations

import typer

from agent import hardening
from agent.cli.common import DEFAULT_CONFIG, ConfigOption, connect


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @app.command("agent")
    def agent(config: ConfigOption = DEFAULT_CONFIG) -> None:
        """Watch the source, seal what changes, restart the VMs concerned. Runs until SIGTERM."""
        # Of no use to other verbs, and not quickly loaded.
        from agent import log  # noqa: PLC0415 (see above)
        from agent.control import Control  # noqa: PLC0415 (see above)
        from agent.service import Service  # noqa: PLC0415 (see above)

        log.configure()
        log.hardened(hardening.harden())
        Service(config, connect, Control).run()
