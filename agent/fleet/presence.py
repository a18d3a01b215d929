# SPDX-License-Identifier: MIT
"""Which hosts of a group are there, with a few facts for display, on a lease: a dead host's facts go.

Nothing depends on it: not a slot, not a halt. A report is written when it differs from the last one. In
between, only the lease is kept, which adds nothing to etcd's history. All reports of an engine end together.
Nothing is written to another etcd than the one that the host keeps to. Each write would add a revision
there, and hide from hosts that it has lost their slots.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import msgspec

from credferry.agent.errors import StoreError
from credferry.agent.fleet import keys
from credferry.agent.fleet.cluster import Seen, fault_of
from credferry.agent.fleet.model import Applied, Present, Unavailable
from credferry.agent.fleet.transactions import Number, first_key
from credferry.agent.fleet.transport import EngineFault
from credferry.agent.printable import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from credferry.agent.fleet.cluster import ClusterRecord
    from credferry.agent.fleet.gateway import Member

LEASE_SECONDS: Final = 180
"""How long a report lasts without its host."""
HOSTS_MAX: Final = 2000
"""How many hosts of a group are read."""
_SIZE_MAX: Final = 4096
_T = TypeVar("_T")
_State = Annotated[str, msgspec.Meta(pattern=r"^[a-z -]{1,32}\Z")]
_Count = Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]


class _HostReport(msgspec.Struct, frozen=True, kw_only=True):
    version: Annotated[str, msgspec.Meta(max_length=64)]
    vms: dict[_State, _Count]
    since: Annotated[float, msgspec.Meta(ge=0, le=1e11)]


@dataclass(slots=True)
class Presence:
    """Reports of this host, and of others. Its connections are its own. Calls are made by one thread."""

    members: Sequence[Member]
    record: ClusterRecord | None = None
    """Which cluster the host keeps to."""
    _lease: int = 0
    _told: dict[str, tuple[str, Mapping[str, int]]] = field(default_factory=dict)

    def tell(
        self, host: str, version: str, vms: Mapping[str, Mapping[str, int]], now: float
    ) -> Applied | Unavailable:
        """Report this host's VMs by state, for each group. Call it again well within `LEASE_SECONDS`."""
        return self._ask(lambda member: self._tell(member, host, version, vms, now))

    def hosts(self, group: str) -> tuple[Present, ...] | Unavailable:
        """The hosts that have reported lately, by name. A report that cannot be read is left out."""
        prefix = keys.hosts(group)
        body = {"key": _b64(prefix), "range_end": _b64(keys.end(prefix)), "limit": HOSTS_MAX}

        def work(member: Member) -> tuple[Present, ...]:
            found = member.call("/kv/range", body)
            pairs = found.get("kvs", ()) if isinstance(found, dict) else ()
            read = [_read(prefix, each) for each in pairs if isinstance(each, dict)]
            return tuple(each for each in read if each is not None)

        return self._ask(work)

    def close(self) -> None:
        """Close all connections. The reports last until their lease ends."""
        for member in self.members:
            member.close()

    def _tell(
        self,
        member: Member,
        host: str,
        version: str,
        vms: Mapping[str, Mapping[str, int]],
        now: float,
    ) -> Applied:
        self._check(member)
        if not self._lease or not self._is_kept(member):
            self._told = {}
            granted = member.call("/lease/grant", {"TTL": LEASE_SECONDS})
            self._lease = _number(granted, "ID")
            if not self._lease:
                raise EngineFault("it gives no lease", "check that the URL is etcd's, version 3.4 or later")
        changed = 0
        for group, counts in vms.items():
            told = (version, dict(counts))
            if self._told.get(group) == told:
                continue
            report = msgspec.json.encode(
                _HostReport(version=version[:64], vms=dict(counts), since=max(0.0, now))
            )
            key = keys.host_key(group, host)
            member.call("/kv/put", {"key": _b64(key), "value": _b64(report), "lease": self._lease})
            self._told[group] = told
            changed += 1
        for group in self._told.keys() - vms.keys():
            member.call("/kv/deleterange", {"key": _b64(keys.host_key(group, host))})
            del self._told[group]
            changed += 1
        return Applied(changed)

    def _check(self, member: Member) -> None:
        """Raises `EngineFault` for an etcd that is not the one that the host keeps to."""
        try:
            kept = self.record.read() if self.record is not None else None
        except StoreError as error:
            raise EngineFault(str(error), error.hint) from None
        if kept is not None:
            header = member.transaction(first_key(keys.TOP.encode())).header
            if fault := fault_of(Seen(*kept), Seen(header.cluster_id, header.revision)):
                raise fault

    def _is_kept(self, member: Member) -> bool:
        """Whether the lease still exists. etcd answers for one that has ended, too, but without a TTL."""
        found = member.call("/lease/keepalive", {"ID": self._lease})
        return _number(found.get("result") if isinstance(found, dict) else None, "TTL") > 0

    def _ask(self, work: Callable[[Member], _T]) -> _T | Unavailable:
        faults: list[tuple[str, EngineFault]] = []
        for member in self.members:
            try:
                return work(member)
            except EngineFault as error:
                faults.append((member.url, error))
        return Unavailable("; ".join(f"{url}: {each.reason}" for url, each in faults), faults[0][1].hint)


def _read(prefix: str, pair: Mapping[str, Any]) -> Present | None:
    try:
        name = b64decode(pair.get("key", "")).decode("ascii").removeprefix(prefix)
        content = b64decode(pair.get("value", ""))
        if not keys.HOST.fullmatch(name) or len(content) > _SIZE_MAX:
            return None
        found = msgspec.json.decode(content, type=_HostReport)
    except (ValueError, TypeError, RecursionError):  # of base64, of the text, and of msgspec
        return None
    return Present(name, printable(found.version), found.vms, found.since)


def _number(document: object, name: str) -> int:
    """A number of an answer, which the gateway writes as text; 0 if there is none that etcd can have."""
    found = document.get(name) if isinstance(document, dict) else None
    try:
        return msgspec.convert(found, Number, strict=False) if isinstance(found, str) else 0
    except msgspec.ValidationError:
        return 0


def _b64(data: str | bytes) -> str:
    return b64encode(data.encode() if isinstance(data, str) else data).decode()
