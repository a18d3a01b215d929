# SPDX-License-Identifier: MIT
"""A guest that takes pushes, behind a hypervisor's vsock socket, with cloud-hypervisor's ways.

It answers CONNECT with OK, or hangs up without a word. It gives a connection two seconds to say CONNECT,
never ends one direction of a connection alone, and removes its socket when it ends. What it was pushed is
noted as JSON. Standard library only, as it also runs in throwaway hosts:
``push_guest.py SOCKET NOTES [MODE]``.

In the mode ``takes``, it keeps what it was pushed, as the receiver does: a unit loads a credential only if
its digest has changed, and a repeated push changes nothing. Its working directory has the files of `Files`.
"""

from __future__ import annotations

import base64
import json
import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

BOOT_ID = "0123456789abcdef0123456789abcdef"
HELLO = f"credferry 1 {BOOT_ID} 0 system-directory"
_CONNECT_SECONDS = 2.0


class Files:
    """What a guest in the mode ``takes`` and a test have in common, in the guest's working directory."""

    LOADS = "loads"
    """A line for each load of a credential by its unit: the name and the digest."""
    STOP = "stop"
    """The number of the step at which the guest stops, once: the test makes this file."""
    STOPPED, GO = "stopped", "go"
    """FIFOs: the guest writes to the first at its stop, and then waits for a writer at the second."""


STEPS = 7
"""How many steps a push has at which a guest in the mode ``takes`` can stop; the first is 1."""


class PushGuest:
    """A guest at a socket. ``mode`` is what it does: ``good``, or how it misbehaves."""

    def __init__(self, path: Path, mode: str = "good", hello: str = HELLO) -> None:
        self.path = path
        self.mode = mode
        self.hello = hello
        self.pushes: list[dict[str, Any]] = []
        self.held: list[str] = []
        """The lines of the manifest that it holds."""
        self.heard = b""
        """All bytes that the last connection brought."""
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self.serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(30)
        self.path.unlink(missing_ok=True)

    def serve(self) -> None:
        """Take one connection after the other, until the listener is closed."""
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, suppress(OSError, ValueError):
                self._talk(connection)

    def _talk(self, connection: socket.socket) -> None:
        self.heard = b""
        connection.settimeout(_CONNECT_SECONDS)
        if self._line(connection) != "CONNECT 900":
            return
        connection.settimeout(30)
        if self.mode == "no-receiver":
            return
        self._step(1)
        connection.sendall(b"OK 1073741824\n")
        if self.mode == "silent":
            connection.recv(1)
            return
        if self.mode == "endless":
            while True:
                connection.sendall(b"x" * 4096)
        self._step(2)
        connection.sendall(f"{self.hello}\n".encode())
        if self.mode == "full":
            connection.sendall(b"failed busy\n")
            return
        self._take(connection)

    def _take(self, connection: socket.socket) -> None:
        pushed: dict[str, Any] = {"credentials": {}}
        self._step(3)
        while (line := self._line(connection)) != "commit":
            match line.split(" "):
                case ["generation", kind, length]:
                    pushed["kind"] = kind
                    pushed["manifest"] = self._block(connection, int(length))
                case ["credential", name, kind, length]:
                    self._step(4)
                    pushed["credentials"][name] = [kind, self._block(connection, int(length))]
                case _:
                    return
            if self.mode == "early":
                connection.sendall(b"failed too-much\n")
                return
        self.pushes.append(pushed)
        self._step(5)
        if self.mode == "takes":
            self._load(connection, base64.b64decode(pushed["manifest"]).decode().splitlines())
        else:
            self._answer(connection, pushed)

    def _answer(self, connection: socket.socket, pushed: dict[str, Any]) -> None:
        if self.mode == "units":
            while True:
                connection.sendall(b"unit app.service restarted\n")
        if self.mode == "gone":
            return
        if self.mode == "forger":
            connection.sendall(b"done " + b"0" * 32 + b"\n")
            return
        if self.mode.startswith("waits "):  # for a writer at a FIFO, once
            fifo, self.mode = self.mode.removeprefix("waits "), "good"
            Path(fifo).read_bytes()
        if self.mode.startswith(("failed ", "said ")):
            connection.sendall(self.mode.removeprefix("said ").encode() + b"\n")
            return
        receipt = _field(base64.b64decode(pushed["manifest"]).decode().splitlines(), "receipt")
        connection.sendall(f"unit app.service restarted\ndone {receipt}\n".encode())

    def _load(self, connection: socket.socket, manifest: list[str]) -> None:
        generation, held = (int(_field(lines, "generation", "0")) for lines in (manifest, self.held))
        if generation < held:
            connection.sendall(b"failed older\n")
            return
        changed = [line for line in manifest if line.startswith("credential ") and line not in self.held]
        for line in changed:
            _, name, _, digest = line.split()
            with Path(Files.LOADS).open("a", encoding="ascii") as loads:
                loads.write(f"{name} {digest}\n")
        self._hold(manifest)
        self._step(6)
        units = b"unit app.service restarted\n" if changed else b""
        connection.sendall(units + f"done {_field(manifest, 'receipt')}\n".encode())
        self._step(7)

    def _hold(self, manifest: list[str]) -> None:
        """What was pushed is what it holds from now on; the loads are written by now."""
        self.held = manifest

    def _step(self, number: int) -> None:
        """Stop here if a test asks for it, until it has done what it wants."""
        stop = Path(Files.STOP)
        if self.mode == "takes" and stop.exists() and stop.read_text() == str(number):
            stop.unlink()
            Path(Files.STOPPED).write_text("stopped\n", encoding="ascii")
            Path(Files.GO).read_bytes()

    def _line(self, connection: socket.socket) -> str:
        line = b""
        while not line.endswith(b"\n"):
            if not (byte := connection.recv(1)):
                raise ConnectionError
            line += byte
        self.heard += line
        return line[:-1].decode()

    def _block(self, connection: socket.socket, length: int) -> str:
        data = b""
        while len(data) < length:
            if not (piece := connection.recv(length - len(data))):
                raise ConnectionError
            data += piece
        self.heard += data
        return data.decode()


def _field(manifest: list[str], name: str, absent: str = "") -> str:
    return next((line.split()[1] for line in manifest if line.startswith(f"{name} ")), absent)


def main() -> None:
    """Serve at a socket until killed; write what was pushed last to a file."""
    path, notes, *mode = sys.argv[1:]
    Path(path).unlink(missing_ok=True)
    guest = PushGuest(Path(path), *mode)

    class Noted(list[dict[str, Any]]):
        def append(self, pushed: dict[str, Any]) -> None:
            super().append(pushed)
            Path(notes).write_text(json.dumps(pushed), encoding="ascii")

    guest.pushes = Noted()
    guest.serve()


if __name__ == "__main__":
    main()
