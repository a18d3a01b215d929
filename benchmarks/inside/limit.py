# SPDX-License-Identifier: MIT
"""The limit: a program that restarts a unit when a symlink is renamed into place, and nothing else.

``limit.py DIRECTORY NAME UNIT``. Nothing is read, compared, sealed or noted. The message is ready before the
event comes, so between the event and systemd there are two system calls. Standard library only.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import sys

_IN_MOVED_TO = 0x80
_EVENT = struct.Struct("iIII")
_STRING, _OBJECT, _SIGNATURE = b"s", b"o", b"g"


def _string(value: bytes) -> bytes:
    return struct.pack("<I", len(value)) + value + b"\0"


def _padded(data: bytes, to: int) -> bytes:
    return data + bytes(-len(data) % to)


def message(serial: int, path: bytes, destination: bytes, member: bytes, *body: bytes) -> bytes:
    """A D-Bus method call whose arguments are strings; ``member`` is with its interface."""
    interface, _, name = member.rpartition(b".")
    fields = [(1, _OBJECT, path), (2, _STRING, interface), (3, _STRING, name), (6, _STRING, destination)]
    header = b""
    for code, kind, value in fields:
        header = _padded(header, 8) + bytes([code, 1]) + kind + b"\0" + _string(value)
    if body:
        signature = _STRING * len(body)
        header = _padded(header, 8) + bytes([8, 1]) + _SIGNATURE + b"\0"
        header += bytes([len(signature)]) + signature + b"\0"
    content = b""
    for argument in body:
        content = _padded(content, 4) + _string(argument)
    start = struct.pack("<cBBBIII", b"l", 1, 0, 1, len(content), serial, len(header))
    return _padded(start + header, 8) + content


def connect() -> socket.socket:
    """A connection to the system bus that has said hello."""
    bus = socket.socket(socket.AF_UNIX)
    bus.connect("/run/dbus/system_bus_socket")
    bus.sendall(b"\0AUTH EXTERNAL " + str(os.geteuid()).encode().hex().encode() + b"\r\n")
    if not bus.recv(4096).startswith(b"OK"):
        raise SystemExit("the bus does not let us in")
    bus.sendall(b"BEGIN\r\n")
    name = b"org.freedesktop.DBus"
    bus.sendall(message(1, b"/org/freedesktop/DBus", name, name + b".Hello"))
    bus.recv(4096)
    return bus


def main() -> None:
    """Wait for the name, for ever."""
    directory, name, unit = (os.fsencode(word) for word in sys.argv[1:])
    bus = connect()
    systemd = b"org.freedesktop.systemd1"
    ask = message(
        *(2, b"/org/freedesktop/systemd1", systemd, systemd + b".Manager.TryRestartUnit"), unit, b"replace"
    )
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.inotify_init1(os.O_CLOEXEC)
    if watch < 0 or libc.inotify_add_watch(watch, directory, _IN_MOVED_TO) < 0:
        raise OSError(ctypes.get_errno(), "inotify")
    wanted = name + b"\0"
    while True:
        events = os.read(watch, 65536)
        if events.startswith(wanted, _EVENT.size) or wanted in events:
            bus.sendall(ask)
            bus.recv(65536)


if __name__ == "__main__":
    main()
