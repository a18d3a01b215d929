# SPDX-License-Identifier: MIT
"""Passes a guest's messages to the unit's systemd: that the guest is up, and a line of status.

The guest's systemd connects to vsock port 8888 of the host (``vmm.notify_socket``). cloud-hypervisor then
connects to the launcher's socket. The launcher passes only ``READY=1`` and ``STATUS=`` on: with
``NotifyAccess=all``, the guest could otherwise use all of sd_notify(3).
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Final

_MESSAGE_MAX: Final = 4096
_STATUS_MAX: Final = 200
_CONNECTIONS_MAX: Final = 8
_UNSENT_MAX: Final = 7
_AGAIN_MS: Final = 200
_LATER: Final = frozenset({errno.EAGAIN, errno.EINTR, errno.ENOBUFS, errno.ENOMEM})


def listen(path: str) -> int:
    """A listening socket for this user only, replacing one from an earlier run. Raises `OSError`."""
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
    """Passes messages on, and never waits for a guest or for systemd.

    If the kernel refuses something for a moment (no descriptor for a connection, no room in systemd's
    socket), the bridge retries. If a guest's READY=1 were lost, systemd would end the VM.
    """

    def __init__(self, listening: int, target: str) -> None:
        self._listening = socket.socket(fileno=listening)
        self._listening.setblocking(False)
        self._target = target.replace("@", "\0", 1) if target.startswith("@") else target
        self._systemd = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._systemd.setblocking(False)
        self._open: dict[int, tuple[socket.socket, bytearray]] = {}
        self._unsent: list[bytes] = []
        self._is_short = False

    @property
    def descriptors(self) -> set[int]:
        """The descriptors that must stay open for the bridge."""
        return {*self._open, self._listening.fileno(), self._systemd.fileno()}

    @property
    def wanted(self) -> set[int]:
        """The descriptors to wait for. When one becomes readable, call `serve` with it."""
        closed = self._is_short or len(self._open) >= _CONNECTIONS_MAX
        return {*self._open, *(() if closed else [self._listening.fileno()])}

    @property
    def again_ms(self) -> int | None:
        """Milliseconds until the next `serve`, even if nothing becomes readable; None for no limit."""
        return _AGAIN_MS if self._is_short or self._unsent else None

    def serve(self, readable: Iterable[int]) -> None:
        """Handle the readable descriptors, and retry what failed before. Raises nothing."""
        self._is_short = False
        for descriptor in readable:
            if descriptor == self._listening.fileno():
                self._accept()
            else:
                self._read(descriptor)
        self._send()

    def _accept(self) -> None:
        try:
            connection, _ = self._listening.accept()
        except BlockingIOError:
            return
        except OSError:
            self._is_short = True  # the socket stays readable: an immediate retry would loop for ever
            return
        connection.setblocking(False)
        self._open[connection.fileno()] = connection, bytearray()

    def _read(self, descriptor: int) -> None:
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
            lines = [kept for line in bytes(held[:_MESSAGE_MAX]).split(b"\n") if (kept := _kept(line))]
            if lines:
                self._unsent = [*self._unsent[-_UNSENT_MAX:], b"\n".join(lines)]

    def _send(self) -> None:
        while self._unsent:
            try:
                self._systemd.sendto(self._unsent[0], self._target)
            except OSError as error:
                if error.errno in _LATER:
                    return
            del self._unsent[0]


def _kept(line: bytes) -> bytes:
    if line == b"READY=1":
        return line
    if not line.startswith(b"STATUS="):
        return b""
    text = line[:_STATUS_MAX].decode(errors="replace")
    return "".join(char if char.isprintable() else " " for char in text).encode()
