# SPDX-License-Identifier: MIT
"""Makes the engine that the configuration names. Only a host with a fleet loads the libraries for it."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING

from credferry.agent.errors import ConfigurationError
from credferry.agent.fleet.keys import HOST
from credferry.agent.fleet.model import Holder, machine_of

if TYPE_CHECKING:
    from credferry.agent.config.fleet import FleetConfig
    from credferry.agent.fleet.model import Engine


def open_engine(fleet: FleetConfig, credentials: Path | None) -> Engine:
    """The engine. It connects at its first call, and a failure is an answer of that call.

    ``credentials`` is the directory of the agent's own credentials, if its unit has any. Raises
    `ConfigurationError` where a file is named that would be in it.
    """
    # These load requests: 16 MiB that other hosts save.
    from credferry.agent.fleet.transport import Tls, session  # noqa: PLC0415

    tls = Tls(
        fleet.ca,
        *(str(_file(fleet, each, credentials) or "") for each in ("certificate", "key")),
    )
    if fleet.fleetlock is not None:
        from credferry.agent.fleet.fleetlock import FleetLock  # noqa: PLC0415

        return FleetLock(fleet.fleetlock, session(tls, fleet.timeout_seconds))
    from credferry.agent.fleet.etcd import Etcd  # noqa: PLC0415
    from credferry.agent.fleet.gateway import Login, Member  # noqa: PLC0415

    password = _file(fleet, "password_file", credentials)
    login = Login(fleet.user, password) if fleet.user is not None and password is not None else None
    return Etcd([Member(url, tls, login, fleet.timeout_seconds) for url in fleet.endpoints])


def holder(fleet: FleetConfig, vm: str, machine_id: str) -> Holder:
    """A VM of this host as the fleet knows it. Raises `ConfigurationError` for an unusable host name."""
    host = fleet.host or socket.gethostname()
    if not HOST.fullmatch(host) or host == "localhost":
        raise ConfigurationError(
            "fleet.host: the host name of this machine cannot be its name in the fleet",
            hint="set host in [fleet] to a name that no other host has",
        )
    return Holder(host, vm, machine_of(machine_id.encode()))


def _file(fleet: FleetConfig, key: str, credentials: Path | None) -> Path | None:
    named: str | None = getattr(fleet, key)
    if named is None or named.startswith("/"):
        return None if named is None else Path(named)
    if credentials is None:
        raise ConfigurationError(
            f"fleet.{key}: this process has no credentials of its own",
            hint=f"add LoadCredential={named}:PATH to the agent's unit, or write an absolute path",
        )
    return credentials / named
