# SPDX-License-Identifier: MIT
"""A software TPM 2.0 (swtpm) that systemd uses, with what the kernel's /dev/tpmrm0 adds to a TPM.

A TPM has room for three sessions, and systemd 252 does not end its own. The kernel's resource manager
flushes what a process leaves, so this does so too. Firmware fills PCR 7 before a system starts, and so does
this. systemd reaches it through libtss2-tcti-mssim, which keeps one connection while a process uses the TPM.

``python tpm.py STATE PORT`` serves until it is ended, for a unit of a throwaway host; standard library only.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

_SECONDS = 20.0
_SESSIONS, _NO_SESSIONS = 0x8002, 0x8001
_GET_CAPABILITY, _FLUSH_CONTEXT, _EXTEND, _CLEAR = 0x17A, 0x165, 0x182, 0x126
_SEND_COMMAND = 8
_DICTIONARY_ATTACK_PARAMETERS = 0x13A
_LOCKOUT, _PLATFORM = 0x4000000A, 0x4000000C
_HANDLES = (0x02000000, 0x03000000, 0x80000000)
"""First handles of HMAC sessions, policy sessions and transient objects."""
_PASSWORD = struct.pack(">IIHBH", 9, 0x40000009, 0, 0, 0)
"""An authorization area with an empty password."""


class SoftwareTpm:
    """One TPM. Its seeds are in a directory: another directory is another TPM."""

    def __init__(self, state: Path, port: int = 0) -> None:
        self._state = state
        self._lock = threading.RLock()
        self._swtpm: subprocess.Popen[bytes] | None = None
        self._data: socket.socket | None = None
        self._listeners = _listeners(port)

    @property
    def device(self) -> str:
        """The device's name for ``--tpm2-device=`` and for the variable SYSTEMD_TPM2_DEVICE."""
        return f"mssim:host=127.0.0.1,port={self._listeners[0].getsockname()[1]}"

    def start(self) -> None:
        """Switch it on, as after a boot of the machine: PCR 7 has a value that is always the same."""
        self._state.mkdir(exist_ok=True)
        data, control = (self._state / name for name in ("data", "control"))
        for path in (data, control):
            path.unlink(missing_ok=True)
        self._swtpm = subprocess.Popen(
            [
                *("swtpm", "socket", "--tpm2", "--tpmstate", f"dir={self._state}"),
                *("--server", f"type=unixio,path={data}", "--ctrl", f"type=unixio,path={control}"),
                *("--flags", "not-need-init,startup-clear"),
            ]
        )
        self._data = _connected(data, self._swtpm)
        self.extend(7)

    def stop(self) -> None:
        """Switch it off: nobody can connect to it any more, and its PCRs are lost."""
        with self._lock:
            if self._data is not None:
                self._data.close()
                self._data = None
            if self._swtpm is not None:
                self._swtpm.terminate()
                self._swtpm.wait()
                self._swtpm = None

    def close(self) -> None:
        """End for good."""
        self.stop()
        for each in self._listeners:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def extend(self, pcr: int, digest: bytes = b"\x01" * 32) -> None:
        """Extend a PCR, as firmware does with what it starts."""
        area = struct.pack(">I", pcr) + _PASSWORD + struct.pack(">IH", 1, 0x000B) + digest
        self._ask(_SESSIONS, _EXTEND, area)

    def clear(self) -> None:
        """Clear it, as an operator does in the firmware's menu: what it sealed never opens again."""
        self._ask(_SESSIONS, _CLEAR, struct.pack(">I", _PLATFORM) + _PASSWORD)

    def lock(self) -> None:
        """Lock it, as too many wrong passwords do: here, none at all are too many."""
        area = struct.pack(">I", _LOCKOUT) + _PASSWORD + struct.pack(">III", 0, 1000, 1000)
        self._ask(_SESSIONS, _DICTIONARY_ATTACK_PARAMETERS, area)

    def unlock(self) -> None:
        """Unlock it again, as tpm2_dictionarylockout does."""
        area = struct.pack(">I", _LOCKOUT) + _PASSWORD + struct.pack(">III", 3, 1000, 1000)
        self._ask(_SESSIONS, _DICTIONARY_ATTACK_PARAMETERS, area)

    def serve(self) -> None:
        """Serve one client after the other, until `close`."""
        commands, platform = self._listeners
        threading.Thread(target=_serve_platform, args=(platform,), daemon=True).start()
        while True:
            try:
                client, _ = commands.accept()
            except OSError:
                return
            with client, suppress(OSError):
                self._relay(client)
            with suppress(OSError):
                self._flush()

    def _relay(self, client: socket.socket) -> None:
        """Serve one client, in the protocol of Microsoft's simulator: each command in an envelope."""
        while int.from_bytes(_exactly(client, 4), "big") == _SEND_COMMAND:
            (size,) = struct.unpack(">xI", _exactly(client, 5))
            command = _exactly(client, size)
            with self._lock:
                answer = self._exchange(command)
            client.sendall(struct.pack(">I", len(answer)) + answer + bytes(4))

    def _exchange(self, command: bytes) -> bytes:
        if self._data is None:
            raise OSError("the TPM is switched off")
        self._data.sendall(command)
        return _message(self._data)

    def _ask(self, tag: int, code: int, area: bytes) -> bytes:
        with self._lock:
            answer = self._exchange(struct.pack(">HII", tag, 10 + len(area), code) + area)
        result = int.from_bytes(answer[6:10], "big")
        if result:
            raise OSError(f"the TPM answers {result:#x}")
        return answer[10:]

    def _flush(self) -> None:
        for first in _HANDLES:
            answer = self._ask(_NO_SESSIONS, _GET_CAPABILITY, struct.pack(">III", 1, first, 64))
            (count,) = struct.unpack_from(">I", answer, 5)
            for handle in struct.unpack_from(f">{count}I", answer, 9):
                self._ask(_NO_SESSIONS, _FLUSH_CONTEXT, struct.pack(">I", handle))


def _listeners(port: int) -> tuple[socket.socket, socket.socket]:
    """Listen on two ports that follow each other: libtss2-tcti-mssim takes the second for the platform."""
    while True:
        pair = socket.socket(), socket.socket()
        try:
            for at, each in enumerate(pair):
                each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                each.bind(("127.0.0.1", pair[0].getsockname()[1] + 1 if at else port))
                each.listen()
        except (OSError, OverflowError):
            for each in pair:
                each.close()
            if port:
                raise
        else:
            return pair


def _serve_platform(listener: socket.socket) -> None:
    """Answer the platform's signals, such as to switch on the power, with success."""
    while True:
        try:
            client, _ = listener.accept()
        except OSError:
            return
        with client, suppress(OSError):
            while _exactly(client, 4):
                client.sendall(bytes(4))


def _message(peer: socket.socket) -> bytes:
    """One command or answer: its header says how long it is. Empty if the peer is gone."""
    header = _exactly(peer, 10)
    return header and header + _exactly(peer, int.from_bytes(header[2:6], "big") - 10)


def _exactly(peer: socket.socket, size: int) -> bytes:
    parts = b""
    while len(parts) < size:
        if peer.family is socket.AF_INET:
            # The client sends an envelope in parts, each after an acknowledgement: do not delay these.
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        part = peer.recv(size - len(parts))
        if not part:
            return b""
        parts += part
    return parts


def _connected(path: Path, process: subprocess.Popen[bytes]) -> socket.socket:
    """A connection to a socket that a process is about to make."""
    ended = os.pidfd_open(process.pid)
    try:
        for _ in range(int(_SECONDS / 0.02)):
            peer = socket.socket(socket.AF_UNIX)
            try:
                peer.connect(str(path))
            except OSError:
                peer.close()
            else:
                return peer
            if select.select([ended], [], [], 0.02)[0]:
                break
    finally:
        os.close(ended)
    raise OSError("swtpm does not start")


if __name__ == "__main__":
    tpm = SoftwareTpm(Path(sys.argv[1]), int(sys.argv[2]))
    tpm.start()
    if "NOTIFY_SOCKET" in os.environ:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
    tpm.serve()
