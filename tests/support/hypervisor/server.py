# SPDX-License-Identifier: MIT
"""The event loop: API clients, the VM's end, and the signals that end the VMM. One thread."""

from __future__ import annotations

import contextlib
import fcntl
import os
import selectors
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from .http import Connection, MalformedError

if TYPE_CHECKING:
    from .api import Api
    from .machine import Machine


class ListenError(Exception):
    """An API socket that cannot be had; each argument is one link of the error's chain."""


def listen_at(path: str) -> tuple[socket.socket, int]:
    """A listening socket of mode 0600 (by the umask), and the lock beside it that must stay open."""
    lock = os.open(f"{path}.lock", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise ListenError("Failed to start the VMM thread", f"API socket {path} is in use") from None
    with contextlib.suppress(OSError):
        Path(path).unlink()
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(path)
    except OSError as error:
        raise ListenError(
            "Failed to start the VMM thread",
            "Error creating API server's socket",
            f"{error.strerror} (os error {error.errno})",
        ) from None
    listener.listen()
    return listener, lock


def listen_on(descriptor: int) -> socket.socket:
    """The listening socket that was inherited under this number."""
    try:
        return socket.socket(fileno=descriptor)
    except OSError as error:
        raise ListenError(
            "Failed to start the VMM thread", f"{error.strerror} (os error {error.errno})"
        ) from None


class Loop:
    """Serves until the VMM ends."""

    def __init__(self, api: Api, listener: socket.socket | None) -> None:
        self._api = api
        self._listener = listener
        self._selector = selectors.DefaultSelector()
        self._watched: Machine | None = None
        self._wakeup, sender = socket.socketpair()
        self._wakeup.setblocking(False)
        sender.setblocking(False)
        self._sender = sender
        self._told_to_end = False
        # Only these two: every other signal, SIGUSR2 above all, keeps its default action.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._end)
        signal.set_wakeup_fd(sender.fileno())
        self._selector.register(self._wakeup, selectors.EVENT_READ)
        if listener is not None:
            self._selector.register(listener, selectors.EVENT_READ)

    def run(self) -> int:
        """Serve; the VMM's exit status."""
        vmm = self._api.vmm
        while True:
            if self._told_to_end:
                vmm.shutdown()
                return 0
            if vmm.machine is not None and (outcome := vmm.machine.outcome()) is not None:
                status = vmm.guest_ended(outcome)
                if status is not None:
                    return status
                continue
            self._watch(vmm.machine)
            for key, _mask in self._selector.select():
                if key.fileobj is self._listener:
                    self._accept(self._listener)
                elif isinstance(key.fileobj, Connection):
                    self._serve(key.fileobj)
                elif key.fileobj is self._wakeup:
                    with contextlib.suppress(BlockingIOError):
                        self._wakeup.recv(64)
                if self._api.ended:
                    return 0

    def _end(self, _number: int, _frame: object) -> None:
        self._told_to_end = True

    def _watch(self, machine: Machine | None) -> None:
        """Follow the VM of the moment: a reboot brings another."""
        if machine is self._watched:
            return
        if self._watched is not None:
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(self._watched)  # type: ignore[arg-type]  # registered below as such
        self._watched = None
        if machine is not None and machine.fileno() is not None:
            self._selector.register(machine, selectors.EVENT_READ)  # type: ignore[arg-type]  # fileno() is no None
            self._watched = machine

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            stream, _address = listener.accept()
            self._selector.register(Connection(stream), selectors.EVENT_READ)

    def _serve(self, connection: Connection) -> None:
        alive = connection.receive()
        try:
            while not self._api.ended and (request := connection.next_request()) is not None:
                connection.send(self._api.answer(request))
        except MalformedError as error:
            connection.send_malformed(error)
        if not alive:
            self._selector.unregister(connection)
            connection.close()
