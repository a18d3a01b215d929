# SPDX-License-Identifier: MIT
"""``credferry polkit-rule``: what lets an agent without root restart the configured VMs."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from credferry.agent.cli.common import DEFAULT_CONFIG, ConfigOption
from credferry.agent.config.loading import load
from credferry.agent.systemd.polkit import rule

_USER_NAME = re.compile(r"[a-z_][a-z0-9_-]{0,30}")


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @app.command("polkit-rule")
    def polkit_rule(
        config: ConfigOption = DEFAULT_CONFIG,
        user: Annotated[str, typer.Option("--user", help="The agent's user.", metavar="USER")] = "credferry",
    ) -> None:
        """Print the polkit rule for an agent without root: /etc/polkit-1/rules.d/50-credferry.rules."""
        if not _USER_NAME.fullmatch(user):
            raise typer.BadParameter("not a valid user name", param_hint="--user")
        typer.echo(rule(load(config), user), nl=False)
