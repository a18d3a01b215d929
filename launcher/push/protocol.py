# SPDX-License-Identifier: MIT
"""The host's side of a push, version 1: lines of ASCII, and blocks with their length ahead.

::

    host:  CONNECT 900                          to the hypervisor, which answers OK HOSTPORT
    guest: credferry 1 BOOT_ID GENERATION CAPABILITIES
    host:  generation sealed|plain LENGTH       and the block: the guest's manifest
    host:  credential NAME sealed|plain LENGTH  and the block, once for each credential
    host:  commit
    guest: unit NAME reloaded|restarted|ignored
    guest: done RECEIPT                         or at any time: failed REASON [DETAIL]

Nothing ends by EOF: before version 53, cloud-hypervisor cannot close one direction of a connection.
The guest's words are untrusted: they are bounded, and only printable ASCII is accepted.
"""

from __future__ import annotations

import select
import time

from credferry.launcher.handoff import GENERATION_MAX, Kind
from credferry.launcher.push.vsock import PORT
from credferry.launcher.record import FrozenRecord

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from socket import socket
    from typing import Final

    from credferry.launcher.handoff import Secret

VERSION: Final = "1"
CONNECT_SECONDS: Final = 10.0
HELLO_SECONDS: Final = 30.0
"""A guest on a busy host takes long to start its receiver. A restart of its VM would take longer."""
SECONDS: Final = 150.0
"""For all of a push: the guest takes at most 90 s for its part."""
LINE_MAX: Final = 512
"""Bytes of one line of the guest, with its line feed."""
ANSWER_MAX: Final = 64 << 10
"""Bytes of all that the guest says."""
UNITS_MAX: Final = 256
_CHUNK: Final = 64 << 10
_HEX: Final = frozenset("0123456789abcdef")
_LOWER: Final = frozenset("abcdefghijklmnopqrstuvwxyz-")
_ACTIONS: Final = frozenset({"reloaded", "restarted", "ignored"})
_DIGITS_MAX: Final = 10
_ID_DIGITS: Final = 32
_REASON_MAX: Final = 32


class PushError(Exception):
    """The push failed. The text says what the guest did, and holds printable ASCII only."""


class NoReceiverError(PushError):
    """Nobody in the guest listens for a push, or answered it in time: a later push may succeed."""


class GuestRefusedError(PushError):
    """The guest refused the push, or undid it, and said why."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason} {detail}".strip())
        self.reason = reason
        self.detail = detail


class Hello(FrozenRecord):
    """What the guest says first. ``generation`` is the one that it holds, 0 for none."""

    boot_id: str
    generation: int
    capabilities: frozenset[str]


class Item(FrozenRecord):
    """A block: a credential, or the manifest. ``content`` is what follows ``=`` in its OEM string."""

    name: str
    kind: Kind
    content: Secret


class Done(FrozenRecord):
    """The guest's answer to a push that it applied: its receipt, and by unit what became of it."""

    receipt: str
    units: tuple[tuple[str, str], ...]


class Conversation:
    """One connection to the guest. Each method raises `PushError`; none waits past its deadline."""

    def __init__(self, connection: socket, *, seconds: float = SECONDS) -> None:
        self._connection = connection
        self._connection.setblocking(False)
        self._end = time.monotonic() + seconds
        self._buffer = b""
        self._left = ANSWER_MAX

    def open(self, *, connect: float = CONNECT_SECONDS, hello: float = HELLO_SECONDS) -> Hello:
        """Have the hypervisor connect to the guest's receiver, and read what the receiver says first."""
        self._send(b"CONNECT %d\n" % PORT, connect)
        try:
            answer = self._line(connect)
        except _ClosedError:
            raise NoReceiverError(f"nobody in the guest listens on vsock port {PORT}") from None
        word, _, port = answer.partition(" ")
        if word != "OK" or not _is_number(port):
            raise PushError("the hypervisor did not answer CONNECT with OK")
        try:
            words = self._line(hello).split(" ")
        except _ClosedError:
            raise NoReceiverError("the guest closed the connection before its first word") from None
        match words:
            case ["failed", *_]:
                raise _refused(words)
            case ["credferry", str(version), *_] if version != VERSION and _is_number(version):
                raise PushError(f"the guest's receiver speaks version {version}, and this host {VERSION}")
            case ["credferry", _, boot_id, generation, capabilities] if (
                _is_hex(boot_id) and _is_number(generation) and int(generation) <= GENERATION_MAX
            ):
                return Hello(boot_id, int(generation), frozenset(capabilities.split(",")) - {"-"})
        raise PushError("the guest's first line is not that of a receiver")

    def deliver(self, manifest: Item, items: Sequence[Item]) -> Done:
        """Send a whole generation, and wait for the guest's answer."""
        head = f"generation {_kind(manifest)} {len(manifest.content.reveal())}\n".encode()
        parts = [head, manifest.content.reveal()]
        for item in items:
            block = item.content.reveal()
            parts += [f"credential {item.name} {_kind(item)} {len(block)}\n".encode(), block]
        self._send(b"".join([*parts, b"commit\n"]), SECONDS)
        units: list[tuple[str, str]] = []
        while True:
            try:
                words = self._line(SECONDS).split(" ")
            except _ClosedError:
                raise PushError(
                    "the guest closed the connection before it said how the push ended"
                ) from None
            match words:
                case ["unit", name, action] if action in _ACTIONS and len(units) < UNITS_MAX:
                    units.append((name, action))
                case ["done", receipt] if _is_hex(receipt):
                    return Done(receipt, tuple(units))
                case ["failed", *_]:
                    raise _refused(words)
                case _:
                    raise PushError("the guest's answer is none of the protocol's")

    def _send(self, data: bytes, seconds: float) -> None:
        """Send all, or stop when the guest has already answered or has hung up: `_line` then says why."""
        end = self._until(seconds)
        left = memoryview(data)
        while left and b"\n" not in self._buffer:
            events = self._wait(select.POLLIN | select.POLLOUT, end)
            if events & select.POLLIN and not self._receive():
                return
            if events & select.POLLOUT:
                try:
                    left = left[self._connection.send(left[:_CHUNK]) :]
                except BlockingIOError:
                    continue
                except OSError:
                    return

    def _line(self, seconds: float) -> str:
        """The guest's next line. Raises `_ClosedError` at the end of what it says."""
        end = self._until(seconds)
        while True:
            line, feed, rest = self._buffer.partition(b"\n")
            if len(line) >= LINE_MAX:
                raise PushError(f"the guest sent a line of more than {LINE_MAX} bytes")
            if feed:
                self._buffer = rest
                if not (line.isascii() and line.decode("ascii").isprintable()):
                    raise PushError("the guest sent a line that is not printable ASCII")
                return line.decode("ascii")
            self._wait(select.POLLIN, end)
            if not self._receive():
                raise _ClosedError

    def _receive(self) -> bool:
        """Take what the guest sent; False once it has hung up."""
        try:
            data = self._connection.recv(min(_CHUNK, self._left + 1))
        except BlockingIOError:
            return True
        except OSError:
            return False
        self._left -= len(data)
        if self._left < 0:
            raise PushError(f"the guest sent more than {ANSWER_MAX} bytes")
        self._buffer += data
        return bool(data)

    def _until(self, seconds: float) -> float:
        return min(self._end, time.monotonic() + seconds)

    def _wait(self, events: int, end: float) -> int:
        poll = select.poll()
        poll.register(self._connection, events)
        left = end - time.monotonic()
        ready = poll.poll(left * 1000) if left > 0 else []
        if not ready:
            raise NoReceiverError("the guest did not answer in time")
        got = ready[0][1]
        # An error or a hang-up is found by the next read.
        return got | select.POLLIN if got & (select.POLLERR | select.POLLHUP) else got


class _ClosedError(Exception):
    """The connection has ended."""


def _refused(words: Sequence[str]) -> PushError:
    match words:
        case ["failed", reason] if _is_reason(reason):
            return GuestRefusedError(reason, "")
        case ["failed", reason, detail] if _is_reason(reason) and detail:
            return GuestRefusedError(reason, detail)
    return PushError("the guest refused the push, but not in the protocol's words")


def _kind(item: Item) -> str:
    return "sealed" if item.kind is Kind.SEALED else "plain"


def _is_reason(text: str) -> bool:
    return 0 < len(text) <= _REASON_MAX and _LOWER.issuperset(text)


def _is_hex(text: str) -> bool:
    return len(text) == _ID_DIGITS and _HEX.issuperset(text)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= _DIGITS_MAX
