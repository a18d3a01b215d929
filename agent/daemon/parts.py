# SPDX-License-Identifier: MIT
"""The parts of the host that the daemon uses. A test can replace them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from credferry.agent.journald import Sender
from credferry.agent.rollout.clock import Clock
from credferry.agent.rollout.dispatcher import Dispatcher
from credferry.agent.rollout.engine_thread import EngineThread
from credferry.agent.source.watch import Watch
from credferry.agent.systemd.units import SystemManager

if TYPE_CHECKING:
    from credferry.agent.config.fleet import FleetConfig
    from credferry.agent.fleet.cluster import ClusterRecord
    from credferry.agent.fleet.model import Engine
    from credferry.agent.fleet.presence import Presence
    from credferry.agent.rollout.fleet_calls import Submits

Connect = Callable[[Callable[[str], None]], SystemManager]
"""Connects to systemd. Its argument is called when a unit's job ends or when the connection is lost."""


def _engine(fleet: FleetConfig, record: ClusterRecord) -> Engine:
    """The engine that the configuration names. Loads its library. Raises `ConfigurationError`."""
    from credferry.agent.fleet.opening import open_engine  # noqa: PLC0415 (a host without a fleet saves it)

    return open_engine(fleet, _own_credentials(), record)


def _presence(fleet: FleetConfig, record: ClusterRecord) -> Presence | None:
    """Where this host reports itself; None for a FleetLock server. Raises `ConfigurationError`."""
    if not fleet.endpoints:
        return None
    from credferry.agent.fleet.opening import open_members  # noqa: PLC0415 (as above)
    from credferry.agent.fleet.presence import Presence  # noqa: PLC0415 (see above)

    return Presence(open_members(fleet, _own_credentials()), record)


def _own_credentials() -> Path | None:
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    return Path(directory) if directory else None


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
    engine: Callable[[FleetConfig, ClusterRecord], Engine] = _engine
    engine_thread: Callable[[], Submits] = EngineThread
    presence: Callable[[FleetConfig, ClusterRecord], Presence | None] = _presence
