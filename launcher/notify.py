# SPDX-License-Identifier: MIT
"""What a guest says of itself to the unit's systemd: that it is up, and a line of status.

The guest's systemd connects to vsock port 8888 of the host (``vmm.notify_socket``), for which
cloud-hypervisor connects to a socket of ours. Of what comes, only ``READY=1`` and ``STATUS=`` are passed
on: with ``NotifyAccess=all`` the rest of sd_notify(3) would be the guest's to use.
"""

from __future__ import annotations

import contextlib
import os
import socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_MESSAGE_MAX: Final = 4096
_STATUS_MAX: Final = 200
_CONNECTIONS_MAX: Final = 8


def listen(path: str) -> int:
    """A listening socket for this user only, in place of what an earlier run left. Raises `OSError`."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    before = os.umask(0o177)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as listening:
            listening.bind(path)
            listening.listen(_CONNECTIONS_MAX)
            listening.setblocking(False)
            return listening.detach()
    finally:
        os.umask(before)


class Bridge:
    """Passes messages on, without ever waiting for a guest."""

    def __init__(self, listening: int, target: str) -> None:
        self._listening = socket.socket(fileno=listening)
        self._listening.setblocking(False)
        self._target = target.replace("@", "\0", 1) if target.startswith("@") else target
        self._open: dict[int, tuple[socket.socket, bytearray]] = {}

    @property
    def descriptors(self) -> set[int]:
        """What `serve` wants to hear about, when it becomes readable."""
        full = len(self._open) >= _CONNECTIONS_MAX
        return {*self._open, *(() if full else [self._listening.fileno()])}

    def serve(self, descriptor: int) -> None:
        """Go on with a descriptor that is readable. Raises nothing."""
        if descriptor == self._listening.fileno():
            with contextlib.suppress(OSError):
                connection, _ = self._listening.accept()
                connection.setblocking(False)
                self._open[connection.fileno()] = connection, bytearray()
            return
        connection, held = self._open[descriptor]
        try:
            data = connection.recv(_MESSAGE_MAX)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        held += data
        if not data or len(held) > _MESSAGE_MAX:
            del self._open[descriptor]
            connection.close()
            self._pass_on(bytes(held[:_MESSAGE_MAX]))

    def _pass_on(self, message: bytes) -> None:
        lines = [kept for line in message.split(b"\n") if (kept := _kept(line))]
        if lines:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
                systemd.setblocking(False)
                systemd.sendto(b"\n".join(lines), self._target)


def _kept(line: bytes) -> bytes:
    if line == b"READY=1":
        return line
    if not line.startswith(b"STATUS="):
        return b""
    text = line[:_STATUS_MAX].decode(errors="replace")
    return "".join(char if char.isprintable() else " " for char in text).encode()
