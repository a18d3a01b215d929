# SPDX-License-Identifier: MIT
"""What reads from sockets and pipes: cloud-hypervisor's answers and events, and what a guest says."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import re
import socket
import time
from typing import TYPE_CHECKING, Final

from credferry.launcher.hypervisor.api import ApiError, put
from credferry.launcher.hypervisor.events import EventParser, HypervisorEvent
from credferry.launcher.spec import notify
from tests.fuzz.target import Target, check, check_silent, directory, shows_value

if TYPE_CHECKING:
    from collections.abc import Iterator

_SECONDS: Final = 20.0
_END: Final = b"\r\n\r\n"
_REBOOT: Final = json.dumps(
    {"timestamp": {"secs": 1, "nanos": 2}, "source": "vm", "event": "rebooting", "properties": None},
    indent=2,
).encode()
_HELD_MAX: Final = (64 << 10) + 1
_READY: Final = b"READY=1"


def answer(data: bytes) -> None:
    """An answer of cloud-hypervisor's API, after a byte that says in which pieces it comes."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        for piece in _pieces(data[1:], data[:1]):
            theirs.send(piece)
        theirs.shutdown(socket.SHUT_WR)
        try:
            found = put(ours, "vm.boot", deadline=time.monotonic() + _SECONDS)
        except ApiError as error:
            check_silent(error)
            check("in time" not in str(error), "it waited for more of a closed connection")
            return
    assert not shows_value(repr(found)), "the answer shows its body"
    assert 100 < found.status <= 599, "it is no status"
    head, _, rest = data[1:].partition(_END)
    while head[9:12] == b"100":
        head, _, rest = rest.partition(_END)
    assert re.split(rb"[ \r]", head[9:])[0] == str(found.status).encode(), "it is another status"
    assert rest.startswith(found.body), "the body is not what was sent"
    lengths = [
        line.partition(b":")[2] for line in head.split(b"\n") if line.lower().startswith(b"content-length:")
    ]
    assert not lengths or int(lengths[0]) == len(found.body), "the body is not as long as was said"


def events(data: bytes) -> None:
    """The event monitor's stream, after a byte that says in which pieces it comes; then a guest reboots."""
    whole = EventParser()
    wanted = whole.feed(data[1:])
    pieces = EventParser()
    found = [event for piece in _pieces(data[1:], data[:1]) for event in pieces.feed(piece)]
    assert found == wanted, "other pieces, other events"
    assert len(whole._held) <= _HELD_MAX, "it keeps too much"
    assert pieces.feed(b"\n\n" + _REBOOT)[-1:] == [HypervisorEvent("vm", "rebooting")], "it did not recover"


def notification(data: bytes) -> None:
    """What a guest says to systemd, after a byte that says in which pieces: that it is up, its status."""
    bridge, systemd, path = _bridge()
    (listening,) = bridge.wanted
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as guest:
        guest.connect(path)
        bridge.serve({listening})
        for piece in _pieces(data[1:], data[:1]):
            _send(guest, piece)
            _serve(bridge, listening)
    while len(bridge.wanted) > 1:
        _serve(bridge, listening)
    try:
        lines = systemd.recv(1 << 16).split(b"\n")
    except BlockingIOError:
        return
    for line in lines:
        assert line == _READY or line.startswith(b"STATUS="), "the guest said something else"
        assert line.decode().isprintable(), "the status has characters that a terminal would obey"
    assert len(lines) <= data.count(b"\n") + 1


def _send(guest: socket.socket, piece: bytes) -> None:
    # It has said too much, and was hung up on.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        guest.sendall(piece)


def _serve(bridge: notify.Bridge, listening: int) -> None:
    bridge.serve(bridge.wanted - {listening})


@functools.cache
def _bridge() -> tuple[notify.Bridge, socket.socket, str]:
    path, target = (str(directory("notify") / f"{name}{os.getpid()}") for name in ("guest", "systemd"))
    systemd = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    systemd.bind(target)
    systemd.setblocking(False)
    return notify.Bridge(notify.listen(path), target), systemd, path


def _pieces(data: bytes, how: bytes) -> Iterator[bytes]:
    """Pieces of one size; with none, all in one."""
    size = how[0] if how and how[0] else len(data)
    # A socket has room for few small pieces: what comes after a hundred of them comes at once.
    cuts = [*range(0, len(data), size or 1)][:100]
    return (data[start:end] for start, end in itertools.pairwise([*cuts, len(data)]))


TARGETS: Final = (
    Target(
        "answer",
        answer,
        (
            "HTTP/1.1 204",
            "HTTP/1.1 100 Continue",
            "\r\n\r\n",
            "\r\n",
            "Content-Length: ",
            "Transfer-Encoding: ",
        ),
    ),
    Target(
        "events",
        events,
        ('{\n  "source": ', '"event": ', "}", "\n\n", '\\"', '"vm"', "\\u", "{"),
        length_max=192,
    ),
    Target("notification", notification, ("READY=1", "STATUS=", "\n", "MAINPID=1", "FDSTORE=1", "\x1b[31m")),
)
