# SPDX-License-Identifier: MIT
"""Starts the daemon with its parts: the log, the connection to systemd, and the control interface."""

from __future__ import annotations

import faulthandler
import signal
import sys
from typing import TYPE_CHECKING

from credferry.agent import hardening, log
from credferry.agent.control.server import Control
from credferry.agent.daemon.service import Service
from credferry.agent.systemd.manager import SystemBus

if TYPE_CHECKING:
    from pathlib import Path

_SWITCH_SECONDS = 0.0005


def run(config: Path) -> None:
    """Run until SIGTERM or SIGINT. Raises as `Service.run` does.

    If a library in C crashes, standard error gets the stack of each thread: files and lines, no values.
    """
    # If journald hangs, this write waits for it, until systemd ends the process by its own timeout.
    faulthandler.enable()
    faulthandler.register(signal.SIGTRAP, chain=True)  # GLib ends the process with this signal
    # With Python's default, a thread that restarts a VM waits 5 ms again and again while the loop looks.
    sys.setswitchinterval(_SWITCH_SECONDS)
    log.configure()
    log.hardened(hardening.harden())
    Service(config, SystemBus, Control).run()
