# SPDX-License-Identifier: MIT
"""Makes the engine that the configuration names. Only a host with a fleet loads the libraries for it."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING, Final

from credferry.agent.errors import ConfigurationError
from credferry.agent.fleet.keys import HOST
from credferry.agent.fleet.model import Holder, machine_of

if TYPE_CHECKING:
    from credferry.agent.config.fleet import FleetConfig
    from credferry.agent.fleet.cluster import ClusterRecord
    from credferry.agent.fleet.gateway import Member
    from credferry.agent.fleet.model import Engine
    from credferry.agent.fleet.transport import Tls


UNIT_CREDENTIALS: Final = Path("/run/credentials/credferry.service")
"""Where systemd keeps the credentials of the agent's unit while it runs. Root may read them."""


def unit_credentials() -> Path | None:
    """That directory, for root's verbs; None if there is none, as while the agent does not run."""
    return UNIT_CREDENTIALS if UNIT_CREDENTIALS.is_dir() else None


def open_engine(fleet: FleetConfig, credentials: Path | None, record: ClusterRecord | None = None) -> Engine:
    """The engine. It connects at its first call, and a failure is an answer of that call.

    ``credentials`` is the directory of the agent's own credentials, if its unit has any. ``record`` has the
    agent keep to one cluster of etcd; operators' verbs ask any. Raises `ConfigurationError` where a file is
    named that would be in ``credentials``.
    """
    if fleet.fleetlock is not None:
        # These load requests: 16 MiB that other hosts save.
        from credferry.agent.fleet.fleetlock import FleetLock  # noqa: PLC0415 (see above)
        from credferry.agent.fleet.transport import session  # noqa: PLC0415 (see above)

        return FleetLock(fleet.fleetlock, session(tls_of(fleet, credentials), fleet.timeout_seconds))
    from credferry.agent.fleet.cluster import Known  # noqa: PLC0415 (see above)
    from credferry.agent.fleet.etcd import Etcd  # noqa: PLC0415 (see above)

    return Etcd(open_members(fleet, credentials), known=Known(record))


def open_members(fleet: FleetConfig, credentials: Path | None) -> list[Member]:
    """The members of etcd, each with connections of its own; none for a FleetLock server.

    Raises as `open_engine` does.
    """
    from credferry.agent.fleet.gateway import Login, Member  # noqa: PLC0415 (see above)

    tls = tls_of(fleet, credentials)
    password = _file(fleet, "password_file", credentials)
    login = Login(fleet.user, password) if fleet.user is not None and password is not None else None
    return [Member(url, tls, login, fleet.timeout_seconds) for url in fleet.endpoints]


def tls_of(fleet: FleetConfig, credentials: Path | None) -> Tls:
    """The files for TLS. Raises as `open_engine` does."""
    from credferry.agent.fleet.transport import Tls  # noqa: PLC0415 (see above)

    return Tls(
        fleet.ca,
        *(str(_file(fleet, each, credentials) or "") for each in ("certificate", "key")),
    )


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
