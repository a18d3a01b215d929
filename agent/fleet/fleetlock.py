# SPDX-License-Identifier: MIT
"""The engine that asks a FleetLock server: airlock, poseidon/fleetlock, heathcliff26/fleetlock.

The protocol has two calls and no lease. 200 is yes; everything else means "not now". The limits are in the
server's configuration. See: https://coreos.github.io/zincati/development/fleetlock/protocol/
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import msgspec

from credferry.agent.fleet import keys
from credferry.agent.fleet.model import Applied, Full, Granted, OfHost, Unavailable, Unsupported
from credferry.agent.fleet.transport import EngineFault
from credferry.agent.printable import printable

if TYPE_CHECKING:
    import requests

    from credferry.agent.fleet.model import Acquired, Holder, Slot, Unreadable

_TAKE: Final = "/v1/pre-reboot"
_GIVE_BACK: Final = "/v1/steady-state"
_OK: Final = 200
_WRONG: Final = frozenset({400, 401, 403, 404, 405, 407})
"""Statuses that say that the request itself is wrong: no other host's release helps."""
_SAID_MAX: Final = 100


class _Refusal(msgspec.Struct, frozen=True):
    kind: str
    value: str = ""


@dataclass(slots=True)
class FleetLock:
    """An `Engine` with `acquire`, `release` and `free`. Threads' calls take turns."""

    url: str
    session: requests.Session
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def acquire(self, group: str, holder: Holder, change: str) -> Acquired:  # noqa: ARG002 (no place for it)
        """See `Engine`. The server grants a slot again to the VM that has it."""
        found = self._post(_TAKE, group, holder.host, holder.vm)
        return Granted(None) if found is None else found

    def release(self, group: str, holder: Holder) -> Applied | Unavailable:
        """See `Engine`."""
        return self._release(group, holder.host, holder.vm)

    def halt(self, group: str, holder: Holder, change: str, why: str) -> Unsupported:  # noqa: ARG002 (as the protocol says)
        """FleetLock has no halt. The VM that failed keeps its slot, which stops a group with the limit 1."""
        return self._unsupported("halt", group)

    def resume(self, group: str, holder: Holder | None = None) -> Unsupported:  # noqa: ARG002 (as the protocol says)
        """FleetLock has no halt."""
        return self._unsupported("resume", group)

    def free(self, group: str, what: OfHost | Unreadable) -> Applied | Unavailable | Unsupported:
        """Give back the slot of one VM. FleetLock has no list of slots."""
        if isinstance(what, OfHost) and what.vm:
            return self._release(group, what.host, what.vm)
        return self._unsupported("free all slots of a host", group)

    def expire(self, group: str, slot: Slot) -> Unsupported:  # noqa: ARG002 (as the protocol says)
        """FleetLock does not say who holds slots."""
        return self._unsupported("free a slot by its number", group)

    def limit(self, group: str, number: int) -> Unsupported:  # noqa: ARG002 (as the protocol says)
        """FleetLock's server has the limit in its own configuration."""
        return self._unsupported("set the limit", group)

    def groups(self) -> Unsupported:
        """FleetLock has no call for this."""
        return Unsupported(
            f"{self.url}: FleetLock cannot list groups", "do this with the server's own tools"
        )

    def state(self, group: str) -> Unsupported:
        """FleetLock has no call for this."""
        return self._unsupported("show", group)

    def write_down(self) -> None:
        """FleetLock says nothing that would have to outlast the engine."""

    def close(self) -> None:
        """Close all connections."""
        self.session.close()

    def _release(self, group: str, host: str, vm: str) -> Applied | Unavailable:
        found = self._post(_GIVE_BACK, group, host, vm)
        if isinstance(found, Full):
            return Unavailable(
                f"{self.url}: it does not take the slot back: {found.said}", "see the server's log"
            )
        return found or Applied()

    def _post(self, path: str, group: str, host: str, vm: str) -> Full | Unavailable | None:
        """None for yes."""
        body = {"client_params": {"group": keys.check_group(group), "id": identity(host, vm)}}
        try:
            with self._lock:
                response = self.session.post(
                    self.url.rstrip("/") + path, json=body, headers={"fleet-lock-protocol": "true"}
                )
        except EngineFault as fault:
            return Unavailable(f"{self.url}: {fault.reason}", fault.hint)
        if response.status_code == _OK:
            return None
        said = f"status {response.status_code}"
        try:
            refusal = msgspec.json.decode(response.content, type=_Refusal)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return Unavailable(
                f"{self.url}: it does not answer as a FleetLock server does: {said}",
                "check `fleetlock` in [fleet], and the server's log",
            )
        said += f", {printable(refusal.kind[:_SAID_MAX])}"
        if response.status_code in _WRONG:
            return Unavailable(
                f"{self.url}: it refuses the request: {said}", "check `fleetlock` and `group` in [fleet]"
            )
        return Full(said=said)

    def _unsupported(self, what: str, group: str) -> Unsupported:
        return Unsupported(
            f"{self.url}: FleetLock cannot {what}: group {group}", "do this with the server's own tools"
        )


def identity(host: str, vm: str) -> str:
    """``HOST.VM``. A dot of the VM's name is written ``%2E``, so that no two VMs have the same identity."""
    return f"{host}.{vm.replace('.', '%2E')}"
