# SPDX-License-Identifier: MIT
"""The configuration of a fleet: which engine keeps its slots, and how the agent logs in there."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import msgspec

from credferry.agent.config.values import AbsolutePath, CredentialFile, GroupName, HostName
from credferry.agent.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path
    from urllib.parse import SplitResult

    from credferry.agent.config.model import VmConfig

SYSTEM_CA = "/etc/ssl/certs/ca-certificates.crt"
"""The certificates that the host trusts, on Debian and on NixOS."""
_Url = Annotated[str, msgspec.Meta(min_length=1, max_length=2048)]


class FleetConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where the slots of the fleet are."""

    endpoints: Annotated[tuple[_Url, ...], msgspec.Meta(max_length=16)] = ()
    """URLs of etcd's members."""
    fleetlock: _Url | None = None
    """The URL of a FleetLock server, instead of etcd."""
    group: GroupName = "default"
    host: HostName = ""
    """The name of this host in the fleet; empty for its host name."""
    ca: AbsolutePath = SYSTEM_CA
    certificate: CredentialFile | None = None
    key: CredentialFile | None = None
    user: Annotated[str, msgspec.Meta(min_length=1, max_length=256)] | None = None
    password_file: CredentialFile | None = None
    stale_seconds: Annotated[float, msgspec.Meta(ge=0, le=2_592_000)] = 0.0
    """After how long a VM that waits takes away a slot that nobody has given back; 0 for never."""
    timeout_seconds: Annotated[float, msgspec.Meta(ge=0.1, le=60)] = 5.0
    """How long one request may take."""

    @property
    def servers(self) -> tuple[str, ...]:
        """The URLs of etcd's members, or of the FleetLock server."""
        return self.endpoints or (self.fleetlock or "",)

    def group_of(self, vm: VmConfig) -> str:
        """The group to which a VM belongs."""
        return vm.fleet_group or self.group


def check_fleet(fleet: FleetConfig | None, vms: Iterable[VmConfig], path: Path) -> None:
    """Raise `ConfigurationError` for a fleet whose settings are not valid. No message has a user's part."""
    if fleet is not None:
        _check_engine(fleet, path)
        return
    for vm in vms:
        if vm.fleet_group is not None:
            raise ConfigurationError(
                f"{path}: vms.{vm.name}.fleet_group: there is no fleet",
                hint="add a table [fleet], or leave out fleet_group",
            )


def _check_engine(fleet: FleetConfig, path: Path) -> None:
    if bool(fleet.endpoints) == (fleet.fleetlock is not None):
        raise ConfigurationError(
            f"{path}: fleet: expected either endpoints or fleetlock",
            hint='write endpoints = ["https://etcd-1:2379"], or fleetlock = "https://…"',
        )
    if fleet.fleetlock is not None:
        _check_url(fleet.fleetlock, path, "fleet.fleetlock", may_have_path=True)
    seen: set[str] = set()
    for number, url in enumerate(fleet.endpoints):
        _check_url(url, path, f"fleet.endpoints[{number}]", may_have_path=False)
        if url.rstrip("/") in seen:
            raise ConfigurationError(f"{path}: fleet.endpoints[{number}]: is named twice", hint="remove one")
        seen.add(url.rstrip("/"))
    for one, other in (("certificate", "key"), ("user", "password_file")):
        if (getattr(fleet, one) is None) != (getattr(fleet, other) is None):
            raise ConfigurationError(
                f"{path}: fleet: {one} and {other} belong together", hint="set both, or leave out both"
            )
    if fleet.fleetlock is not None and fleet.user is not None:
        raise ConfigurationError(
            f"{path}: fleet.user: a FleetLock server has no users", hint="leave out user and password_file"
        )


def _check_url(url: str, path: Path, key: str, *, may_have_path: bool) -> None:
    parts = _split(url)
    if parts is None:
        raise ConfigurationError(f"{path}: {key}: not a URL", hint="write it as https://etcd-1:2379")
    if parts.username is not None or parts.password is not None:
        raise ConfigurationError(
            f"{path}: {key}: a URL with a user or password",
            hint="remove that part; use user and password_file for etcd",
        )
    if parts.query or parts.fragment or (not may_have_path and parts.path not in {"", "/"}):
        raise ConfigurationError(
            f"{path}: {key}: a URL with more than a host and port", hint="write it as https://etcd-1:2379"
        )
    if parts.scheme == "http" and not _is_loopback(parts.hostname or ""):
        raise ConfigurationError(
            f"{path}: {key}: http is allowed for 127.0.0.1 and ::1 only", hint="write https://"
        )


def _split(url: str) -> SplitResult | None:
    """The parts of a URL; None if it is not one."""
    if not url.isascii() or not url.isprintable() or " " in url:
        return None
    try:
        parts = urlsplit(url)
        is_whole = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:  # a port or an address of a wrong form
        return None
    return parts if is_whole else None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
