# SPDX-License-Identifier: MIT
"""``credferry health``: becomes the command that says whether a VM does its work."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from credferry.agent.cli.common import DEFAULT_CONFIG, ConfigOption
from credferry.agent.config.loading import load
from credferry.agent.errors import ConfigurationError


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @app.command("health")
    def health(
        vm: Annotated[str, typer.Argument(help="The VM's name in the configuration.", metavar="VM")],
        config: ConfigOption = DEFAULT_CONFIG,
    ) -> None:
        """Run a VM's health check, as credferry-health@VM.service does, and end with its status."""
        loaded = load(config)
        command = loaded.vm(vm).health
        if not command:
            return
        environment = {**os.environ, "CREDFERRY_VM": vm}
        try:
            os.execvpe(command[0], command, environment)  # noqa: S606 (the configuration's own command)
        except OSError as error:
            raise ConfigurationError(
                f"{loaded.file}: vms.{vm}.health: {command[0]}: {os.strerror(error.errno or 0)}",
                hint="give the absolute path of a program",
            ) from None
