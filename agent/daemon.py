# SPDX-License-Identifier: MIT
"""The daemon, put together: what it talks to, and how it tells of itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent import hardening, log
from agent.control import Control
from agent.service import Service
from agent.systemd import SystemBus

if TYPE_CHECKING:
    from pathlib import Path


def run(config: Path) -> None:
    """Run until SIGTERM or SIGINT. Raises as `Service.run` does."""
    log.configure()
    log.hardened(hardening.harden())
    Service(config, SystemBus, Control).run()
