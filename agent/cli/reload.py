# SPDX-License-Identifier: MIT
"""``credferry reload``: the agent reads its configuration again. ``systemctl reload`` runs it."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress

import typer

from credferry.agent.cli.common import require_running
from credferry.agent.errors import AgentError, BusError, describe

_MAIN_PID = "MAINPID"
"""systemd sets this for the programs of `ExecReload=`: the agent's process. See systemd.service(5)."""


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @app.command("reload")
    def reload() -> None:
        """Make the agent read its configuration again. If it refuses the file, it keeps the former one."""
        hint = "start it with: systemctl start credferry.service; it then reads the file"
        try:
            agent = require_running(None, "the configuration was not read again", hint)
        except (AgentError, BusError) as error:
            main = os.environ.get(_MAIN_PID, "")
            if not main.isdecimal():
                raise
            _signal(int(main), error)
            return
        with agent:
            agent.call("Reload")


def _signal(main: int, error: Exception) -> None:
    """Send SIGHUP to an agent that cannot be asked: a reload must not fail for want of the bus."""
    with suppress(ProcessLookupError):
        os.kill(main, signal.SIGHUP)
    sys.stderr.write(
        f"credferry: {describe(error)}: sent SIGHUP to the agent; its journal says if it took the file\n"
    )
