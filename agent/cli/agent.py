# SPDX-License-Identifier: MIT
"""``credferry agent``: the daemon, where it is not called as units call it. ``--once`` seals once."""

from __future__ import annotations

from typing import Annotated

import typer

from credferry.agent.cli.common import DEFAULT_CONFIG, ConfigOption, fail_for_bad
from credferry.agent.config.choosing import chosen
from credferry.agent.config.loading import load
from credferry.agent.errors import UsageError


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @app.command("agent")
    def agent(
        config: ConfigOption = DEFAULT_CONFIG,
        once: Annotated[
            bool,
            typer.Option("--once", help="Seal what is published, restart nothing, and end."),
        ] = False,
        wait: Annotated[
            float,
            typer.Option(
                "--wait",
                help="With --once: wait this long for a complete source.",
                metavar="SECONDS",
                min=0.0,
            ),
        ] = 0.0,
        vm: Annotated[
            list[str] | None,
            typer.Option(
                "--vm", help="With --once: seal for this VM only; may be repeated.", metavar="NAME"
            ),
        ] = None,
    ) -> None:
        """Watch the source, seal changes, and restart the VMs that use them. Runs until SIGTERM."""
        if once:
            from credferry.agent.daemon.once import (  # noqa: PLC0415 (of no use to other verbs)
                seal_once,
            )

            loaded = load(config)
            fail_for_bad(loaded, seal_once(loaded, wait, chosen(loaded, vm)))
            return
        if wait or vm:
            raise UsageError(f"{'--wait' if wait else '--vm'} is for --once", hint="give both, or neither")
        from credferry.agent.daemon import (  # noqa: PLC0415 (of no use to other verbs, and not quickly loaded)
            main as daemon,
        )

        daemon.run(config)
