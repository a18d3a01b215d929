# SPDX-License-Identifier: MIT
"""The parts of the host that the daemon uses. A test can replace them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from credferry.agent.journald import Sender
from credferry.agent.rollout.clock import Clock
from credferry.agent.rollout.workers import Dispatcher
from credferry.agent.source.watch import Watch
from credferry.agent.systemd.units import SystemManager

if TYPE_CHECKING:
    from pathlib import Path

Connect = Callable[[Callable[[str], None]], SystemManager]
"""Connects to systemd. Its argument is called when a unit's job ends or when the connection is lost."""


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts other than systemd."""

    sender: Callable[[], Sender] = Sender
    watch: Callable[[Path, Callable[[str], None]], Watch] = Watch
    hire: Callable[[Callable[[str], None], int, float], Dispatcher] = Dispatcher
    """Makes the dispatcher, which carries out restarts."""
    stop: Callable[[], threading.Event] = threading.Event
    """Makes the event that ends waiting early once it is set."""
    clock: Clock = field(default_factory=Clock)
