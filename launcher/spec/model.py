# SPDX-License-Identifier: MIT
"""A VM from a spec file, and what it needs on the host."""

from __future__ import annotations

from credferry.launcher.record import FrozenRecord

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Final

    Table = dict[str, Any]

_NOTIFY_PORT: Final = 8888
GUEST_KEY_TAG: Final = "credferry-key"
"""Tag of the share with the guest's key. contrib/guest mounts it."""
SHARES_DIRECTORY: Final = "/run/credferry-shares"
"""Root's directory, parent of ``RuntimeDirectory=credferry-shares/%i`` of the unit that serves shares."""


class Share(FrozenRecord):
    """A shared directory of the host, and the socket where its virtiofsd listens."""

    tag: str
    source: str
    socket: str
    readonly: bool


class Network(FrozenRecord):
    """A tap device, and the addresses of the host's end."""

    tap: str
    addresses: tuple[str, ...]
    queues: int


class Spec(FrozenRecord):
    """A VM. ``tables`` are the file's, checked and completed; ``user`` may open the tap devices."""

    name: str
    hypervisor: str
    api_socket: str
    user: str
    machine_id: str | None
    """The guest's machine id, if the host gives the guest its key."""
    shares: tuple[Share, ...]
    networks: tuple[Network, ...]
    tables: Mapping[str, Any]

    @property
    def notify_socket(self) -> str | None:
        """Socket to which cloud-hypervisor connects when the guest reports that it is up, or None."""
        vsock = self.tables.get("vsock", {})
        return f"{vsock['socket']}_{_NOTIFY_PORT}" if vsock.get("notify") else None

    @property
    def sockets(self) -> tuple[str, ...]:
        """Sockets that a start creates. A socket from an earlier run would block it."""
        vsock = self.tables.get("vsock")
        return (self.api_socket, *([vsock["socket"]] if vsock else ()))
