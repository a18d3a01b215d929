# SPDX-License-Identifier: MIT
"""[fleet] on this host: whether the agent's unit has a network for it, and its client certificate."""

from __future__ import annotations

import ipaddress
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from credferry.agent.doctor import probe
from credferry.agent.doctor.chain import AGENT
from credferry.agent.doctor.finding import hint, ok, problem
from credferry.agent.fleet.opening import UNIT_CREDENTIALS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from credferry.agent.config.fleet import FleetConfig
    from credferry.agent.doctor.chain import Chain
    from credferry.agent.doctor.finding import Finding

DROP_IN: Final = "credferry-fleet.conf"
_FILES: Final = ("certificate", "key", "password_file")
_SOON: Final = timedelta(days=14)
_FAMILIES: Final = frozenset({"AF_INET", "AF_INET6"})
_WHY: Final = "the agent cannot ask for slots: it seals, but restarts no VM"
_REMEDY_NIXOS: Final = "set services.credferry.fleet in place of settings.fleet, then switch"


def check_network(chain: Chain) -> Iterator[Finding]:
    """Whether the agent's unit may connect to the servers, and has the files that [fleet] names."""
    fleet = chain.config.fleet
    unit = probe.unit(AGENT)
    if unit["LoadState"] != "loaded":
        return
    if fleet is None:
        if not unit.get("PrivateNetwork", True):
            yield hint(
                "fleet.network",
                f"{AGENT} has a network, and there is no [fleet]",
                why="the agent needs no network without it",
                remedy=f"remove the drop-in {DROP_IN}",
            )
        return
    lack = lacking(fleet, unit)
    if lack:
        yield problem("fleet.network", lack, why=_WHY, remedy=remedy())
    else:
        yield ok("fleet.network", f"{AGENT} may connect to the fleet's servers")


def lacking(fleet: FleetConfig, unit: Mapping[str, Any]) -> str:
    """What keeps a unit with these properties from the fleet's servers, in words; empty for nothing."""
    if unit.get("PrivateNetwork"):
        return f"[fleet] is set, and {AGENT} has no network: the drop-in {DROP_IN} is not in force"
    is_allowed, families = unit.get("RestrictAddressFamilies") or (False, [])
    missing = _FAMILIES - set(families) if is_allowed else _FAMILIES & set(families)
    if missing:
        return f"{AGENT} may not use {' and '.join(sorted(missing))} (RestrictAddressFamilies=)"
    loaded = {
        each[0]
        for kind in ("LoadCredential", "LoadCredentialEncrypted", "SetCredential", "SetCredentialEncrypted")
        for each in unit.get(kind, [])
    }
    for key in _FILES:
        name = getattr(fleet, key)
        if name is not None and not name.startswith("/") and name not in loaded:
            return f"fleet.{key}: {AGENT} has no credential {name} (LoadCredential=)"
    denied = [each for each in _servers(fleet) if not _is_open(each, unit)]
    return f"{AGENT} may not send to {', '.join(denied)} (IPAddressAllow=)" if denied else ""


def remedy() -> str:
    """How the agent's unit gets its network."""
    if probe.is_nixos():
        return _REMEDY_NIXOS
    return (
        f"install {DROP_IN} as /etc/systemd/system/{AGENT}.d/60-fleet.conf, put the servers' addresses into "
        f"it, then run: systemctl daemon-reload; systemctl restart {AGENT}"
    )


def check_certificate(chain: Chain) -> Iterator[Finding]:
    """Whether the client's certificate ends soon, or has a CommonName that etcd's gateway would refuse."""
    fleet = chain.config.fleet
    if fleet is None or fleet.certificate is None:
        return
    from cryptography import x509  # noqa: PLC0415 (of no use where there is no certificate)
    from cryptography.x509.oid import NameOID  # noqa: PLC0415 (see above)

    name = fleet.certificate
    path = Path(name) if name.startswith("/") else UNIT_CREDENTIALS / name
    text = probe.text_of(path)
    if text is None:
        yield problem(
            "fleet.certificate",
            f"{path}: does not exist",
            why=_WHY,
            remedy="make the file, or correct `certificate` in [fleet]; a name needs a running agent",
        )
        return
    try:
        found = x509.load_pem_x509_certificates(text.encode())[0]
    except ValueError:
        yield problem(
            "fleet.certificate",
            f"{path}: not a certificate in PEM form",
            why=_WHY,
            remedy="replace the file",
        )
        return
    end = found.not_valid_after_utc
    yield end_of("fleet.certificate", f"{path}: the client's certificate", end)
    if fleet.user is not None and found.subject.get_attributes_for_oid(NameOID.COMMON_NAME):
        yield problem(
            "fleet.certificate.name",
            f"{path}: has a CommonName, and [fleet] names a user",
            why="with authentication on, etcd's gateway refuses each request with such a certificate",
            remedy="issue a client certificate without a CommonName",
        )


def end_of(check: str, what: str, end: datetime) -> Finding:
    """A finding about the end of a certificate."""
    left = end - datetime.now(UTC)
    said = f"{what} ends at {end:%Y-%m-%d %H:%M} UTC"
    if left <= timedelta(0):
        return problem(check, said.replace(" ends ", " has ended "), why=_WHY, remedy="renew it")
    if left < _SOON:
        return hint(check, said, why=f"after that, {_WHY}", remedy="renew it")
    return ok(check, said)


def _servers(fleet: FleetConfig) -> list[str]:
    """The addresses of the servers. A name that cannot be resolved now is left out."""
    found: dict[str, None] = {}
    for url in fleet.servers:
        parts = urlsplit(url)
        try:
            answers = socket.getaddrinfo(parts.hostname, parts.port or 443, type=socket.SOCK_STREAM)
        except OSError:
            continue
        found |= {str(each[4][0]): None for each in answers}
    return list(found)


def _is_open(address: str, unit: Mapping[str, Any]) -> bool:
    """Whether a unit with these properties may send to an address (systemd.resource-control(5))."""
    where = ipaddress.ip_address(address.partition("%")[0])
    return _covers(unit.get("IPAddressAllow", []), where) or not _covers(
        unit.get("IPAddressDeny", []), where
    )


def _covers(nets: Any, where: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:  # noqa: ANN401 (as D-Bus has it)
    for _family, octets, prefix in nets:
        net = ipaddress.ip_network((bytes(octets), prefix), strict=False)
        if net.version == where.version and where in net:
            return True
    return False
