# SPDX-License-Identifier: MIT
"""What keeps the fleet's slots: each server, its certificate and clock, and this host's groups there."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from credferry.agent.doctor import probe
from credferry.agent.doctor.finding import UnseenError, hint, ok, problem
from credferry.agent.doctor.fleet import end_of
from credferry.agent.errors import StoreError
from credferry.agent.fleet.model import BadLimit, Unavailable, UnreadableSlot, Unsupported
from credferry.agent.fleet.opening import holder, open_engine, open_members, tls_of, unit_credentials
from credferry.agent.sealing.keys import read_machine_id
from credferry.agent.store.fleet_cluster import FleetCluster

if TYPE_CHECKING:
    from collections.abc import Iterator

    from credferry.agent.config.fleet import FleetConfig
    from credferry.agent.doctor.chain import Chain
    from credferry.agent.doctor.finding import Finding
    from credferry.agent.fleet.cluster import Seen
    from credferry.agent.fleet.model import Group

_WHY: Final = "the agent gets no slots: it seals, but restarts no VM"
_CLOCK_SECONDS: Final = 60.0


def check_members(chain: Chain) -> Iterator[Finding]:
    """Whether each server answers, with a certificate that lasts, and a clock like this host's."""
    fleet = chain.config.fleet
    if fleet is None:
        return
    if not probe.is_root():
        raise UnseenError("the fleet's servers")
    credentials = unit_credentials()
    for url in fleet.servers:
        if url.startswith("https:"):
            yield from _certificate(fleet, credentials, url)
    for member in open_members(fleet, credentials):
        from credferry.agent.fleet.etcd import Etcd  # noqa: PLC0415 (loads requests)

        engine = Etcd([member])
        found = engine.state(fleet.group)
        if isinstance(found, Unavailable):
            yield problem("fleet.member", found.reason, why=_why(fleet), remedy=found.hint)
        else:
            yield ok("fleet.member", f"{member.url}: answers")
        if engine.known.seen is not None:
            yield from _cluster(chain, member.url, engine.known.seen)
        yield from _clock(member.url, member.date)


def check_groups(chain: Chain) -> Iterator[Finding]:
    """What keeps this host's VMs from getting slots: limits, halts, and slots that nobody gives back."""
    fleet = chain.config.fleet
    if fleet is None:
        return
    if not probe.is_root():
        raise UnseenError("the fleet's groups")
    engine = open_engine(fleet, unit_credentials())
    own = {vm.name: fleet.group_of(vm) for vm in chain.config.vms.values()}
    for name in dict.fromkeys((fleet.group, *own.values())):
        group = engine.state(name)
        if isinstance(group, Unavailable):
            return  # said by `check_members`
        if isinstance(group, Unsupported):
            yield ok("fleet.group", "a FleetLock server does not say who holds slots")
            return
        yield from _of_group(group)
        yield from _of_host(chain, fleet, group, own)


def _of_group(group: Group) -> Iterator[Finding]:
    if isinstance(group.limit, BadLimit):
        yield problem(
            "fleet.group.limit",
            f"group {group.name}: its limit is no number",
            why=_WHY,
            remedy="set it",
            commands=[f"credferry fleet limit {group.name} 1"],
        )
    else:
        unset = "" if group.limit.revision else ", as nobody has set it"
        yield ok("fleet.group.limit", f"group {group.name}: {group.limit.number} at a time{unset}")
    if group.halt is not None:
        yield problem(
            "fleet.group.halt",
            f"group {group.name} is halted: {group.halt.text}",
            why="nothing in it is restarted for a change, on any host",
            remedy=f"repair what failed there; then run: credferry fleet resume {group.name}",
        )
    if any(isinstance(each, UnreadableSlot) for each in group.held):
        yield problem(
            "fleet.group.slot",
            f"group {group.name}: a slot cannot be read, and counts as held",
            why="fewer VMs than the limit are restarted at a time, or none",
            remedy="free it",
            commands=[f"credferry fleet release --unreadable --group {group.name}"],
        )


def _of_host(chain: Chain, fleet: FleetConfig, group: Group, own: dict[str, str]) -> Iterator[Finding]:
    me = holder(fleet, "", read_machine_id(Path(chain.config.machine_id_file)))
    for slot in group.slots:
        if slot.holder.host != me.host:
            continue
        if slot.holder.machine != me.machine:
            yield problem(
                "fleet.group.host",
                f"another machine holds slot {slot.number} of group {group.name} as {me.host}",
                why="of two hosts of one name, the agent cannot tell whose slot it is, and takes none",
                remedy="give each host its own `host` in [fleet]; if this machine was installed anew, run: "
                f"credferry fleet release {me.host}",
            )
        elif own.get(slot.holder.vm) != group.name:
            yield hint(
                "fleet.group.stray",
                f"slot {slot.number} of group {group.name} is held for {slot.holder.vm}, which this host "
                "does not have in that group",
                why="others wait for it; the agent gives it back at its next start, or within an hour",
                remedy=f"or run: credferry fleet release {me.host} --vm {slot.holder.vm} --force",
            )


def _certificate(fleet: FleetConfig, credentials: Path | None, url: str) -> Iterator[Finding]:
    """When a server's certificate ends. A server that cannot be reached is reported by its answer."""
    parts = urlsplit(url)
    address = parts.hostname or "", parts.port or (2379 if fleet.endpoints else 443)
    tls = tls_of(fleet, credentials)
    with contextlib.suppress(OSError, ValueError):  # of TLS, too
        context = ssl.create_default_context(cafile=tls.ca)
        if tls.certificate:
            context.load_cert_chain(tls.certificate, tls.key)
        with (
            socket.create_connection(address, timeout=fleet.timeout_seconds) as plain,
            context.wrap_socket(plain, server_hostname=address[0]) as secured,
        ):
            end = ssl.cert_time_to_seconds(str((secured.getpeercert() or {})["notAfter"]))
        yield end_of("fleet.member.certificate", f"{url}: its certificate", datetime.fromtimestamp(end, UTC))


def _cluster(chain: Chain, url: str, now: Seen) -> Iterator[Finding]:
    """Whether a member belongs to the cluster that the agent keeps to, and has lost nothing since."""
    from credferry.agent.fleet.cluster import Seen, fault_of  # noqa: PLC0415 (loads requests)

    try:
        kept = FleetCluster(Path(chain.config.state_directory)).read()
    except StoreError as error:
        yield problem("fleet.member.cluster", str(error), why=_WHY, remedy=error.hint)
        return
    if kept is not None and (fault := fault_of(Seen(*kept), now)):
        yield problem("fleet.member.cluster", f"{url}: {fault.reason}", why=_WHY, remedy=fault.hint)


def _clock(url: str, date: str) -> Iterator[Finding]:
    with contextlib.suppress(ValueError, TypeError):  # no date, or none that can be read
        ahead = parsedate_to_datetime(date).timestamp() - time.time()
        if abs(ahead) > _CLOCK_SECONDS:
            yield hint(
                "fleet.member.clock",
                f"the clocks of {url} and of this host differ by {abs(ahead):.0f} s",
                why="certificates seem to have ended, or not to be valid yet; no slot depends on a clock",
                remedy="set both clocks, for example with systemd-timesyncd",
            )


def _why(fleet: FleetConfig) -> str:
    if len(fleet.endpoints) > 1:
        return "the agent asks the other members; without a quorum it gets no slots, and restarts no VM"
    return _WHY
