# SPDX-License-Identifier: MIT
"""Joins two throwaway hosts, which have no network: a port on one's loopback leads to the other's."""

from __future__ import annotations

import ctypes
import os
import select
import socket
import threading
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.host import Host

_CLONE_NEWNET: Final = 0x40000000
_CHUNK: Final = 65536


def _enter(host: Host) -> None:
    """Have this thread make its sockets in a host's network."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(f"/proc/{host.leader}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.setns(descriptor, _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns")
    finally:
        os.close(descriptor)


@contextmanager
def tunnel(inside: Host, to: Host, port: int) -> Iterator[None]:
    """While this lasts, ``127.0.0.1:port`` in one host is that of the other host."""
    made: list[socket.socket] = []
    ready = threading.Event()

    def listen() -> None:
        _enter(inside)
        with socket.create_server(("127.0.0.1", port)) as server:
            made.append(server)
            ready.set()
            with suppress(OSError):  # the end closes it
                while True:
                    accepted, _ = server.accept()
                    threading.Thread(target=_join, args=(accepted, to, port), daemon=True).start()

    threading.Thread(target=listen, daemon=True).start()
    if not ready.wait(20):
        raise OSError("nothing listens in the host")
    try:
        yield
    finally:
        made[0].shutdown(socket.SHUT_RDWR)


def _join(accepted: socket.socket, to: Host, port: int) -> None:
    """Carry bytes both ways until one side ends."""
    with ExitStack() as stack, suppress(OSError):
        stack.enter_context(accepted)
        _enter(to)
        other = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
        ways = {accepted: other, other: accepted}
        while True:
            for side in select.select(list(ways), [], [])[0]:
                data = side.recv(_CHUNK)
                if not data:
                    return
                ways[side].sendall(data)
