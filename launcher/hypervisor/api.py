# SPDX-License-Identifier: MIT
"""cloud-hypervisor's REST API over its AF_UNIX socket: one request per connection, each with a deadline.

Its server (micro_http) takes lines of up to 1,024 bytes and a body of ``Content-Length`` bytes. Descriptors
travel with the first bytes (SCM_RIGHTS).
"""

from __future__ import annotations

import socket
import struct
import time

from credferry.launcher.record import FrozenRecord, field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

_HEAD_MAX: Final = 16 << 10
_BODY_MAX: Final = 1 << 20
_END: Final = b"\r\n\r\n"
_VERSIONS: Final = frozenset({b"HTTP/1.0", b"HTTP/1.1"})
_STATUS_DIGITS: Final = 3
_LENGTH_DIGITS_MAX: Final = 18
_GOOD: Final = range(200, 300)
_CONTINUE: Final = 100


class ApiError(Exception):
    """The socket cannot be reached, is not cloud-hypervisor's, or gives no answer in time."""


class Answer(FrozenRecord):
    """cloud-hypervisor's answer. The body can quote the VM's configuration, including its secrets."""

    status: int
    body: bytes = field(repr=False)

    @property
    def good(self) -> bool:
        """Whether the request succeeded."""
        return self.status in _GOOD


def connect(path: str, deadline: float) -> socket.socket:
    """A connection to the socket at ``path``. Raises `OSError` at once if no process listens there (yet)."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        connection.settimeout(_left(deadline))
        connection.connect(path)
    except BaseException:
        connection.close()
        raise
    return connection


def listener_pid(connection: socket.socket) -> int:
    """PID of the process that made the socket listen. A later exec does not change it (SO_PEERCRED)."""
    size = struct.calcsize("3i")
    pid: int = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))[0]
    return pid


def put(
    connection: socket.socket, endpoint: str, *, deadline: float, body: bytes = b"", fds: Sequence[int] = ()
) -> Answer:
    """Send one PUT, return the answer, and close the connection. Raises `ApiError`.

    ``deadline`` is a time of `time.monotonic`.
    """
    try:
        with connection:
            connection.settimeout(_left(deadline))
            _send(connection, _head(endpoint, len(body)), fds)
            _send_all(connection, body, deadline)
            return _receive(connection, deadline)
    except TimeoutError:
        raise ApiError(f"{endpoint}: no answer in time") from None
    except OSError as error:
        raise ApiError(f"{endpoint}: {error.strerror or 'the connection broke'}") from None


def ask(connection: socket.socket, endpoint: str) -> None:
    """Send one PUT without a body, and do not wait for the answer. Raises `OSError`."""
    _send(connection, _head(endpoint, 0), ())


def _head(endpoint: str, length: int) -> bytes:
    return (
        f"PUT /api/v1/{endpoint} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n"
        f"Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


def _send(connection: socket.socket, data: bytes, fds: Sequence[int]) -> None:
    rights = struct.pack(f"{len(fds)}i", *fds)
    sent = connection.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if fds else [])
    # An empty send would fail if the answer has already come and the connection is closed.
    if data[sent:]:
        connection.sendall(data[sent:])


def _send_all(connection: socket.socket, data: bytes, deadline: float) -> None:
    if not data:
        return
    connection.settimeout(_left(deadline))
    try:
        connection.sendall(data)
    except (BrokenPipeError, ConnectionResetError):
        return  # There may still be an answer: the server refuses a body over the limit before it reads it.


def _receive(connection: socket.socket, deadline: float) -> Answer:
    buffer = b""
    while True:
        head, end, body = buffer.partition(_END)
        if end:
            status = _status(head)
            length = _length(head)
            if length > _BODY_MAX:
                raise ApiError("the answer is too large")
            if len(body) >= length:
                if status != _CONTINUE:
                    return Answer(status, body[:length])
                buffer = body
                continue
        elif len(buffer) > _HEAD_MAX:
            raise ApiError("the answer's head is too large")
        connection.settimeout(_left(deadline))
        data = connection.recv(64 << 10)
        if not data:
            raise ApiError("the connection was closed before the answer")
        buffer += data


def _status(head: bytes) -> int:
    """The status in an answer's head. Raises `ApiError`."""
    version, _, rest = head.partition(b" ")
    digits, after = rest[:_STATUS_DIGITS], rest[_STATUS_DIGITS : _STATUS_DIGITS + 1]
    if version not in _VERSIONS or after not in {b"", b" ", b"\r"}:
        raise ApiError("the answer is not HTTP")
    if len(digits) != _STATUS_DIGITS or not digits.isdigit() or digits[:1] not in b"12345":
        raise ApiError("the answer is not HTTP")
    return int(digits)


def _length(head: bytes) -> int:
    """Bytes of the body, or 0 if the head does not say. Raises `ApiError`."""
    for line in head.split(b"\n"):
        name, colon, said = line.partition(b":")
        if colon and name.lower() == b"content-length":
            digits = said.removesuffix(b"\r").strip(b" \t")
            if not digits.isdigit() or len(digits) > _LENGTH_DIGITS_MAX:
                raise ApiError("the answer's length is not a number")
            return int(digits)
    return 0


def _left(deadline: float) -> float:
    """Seconds until the deadline. Raises `TimeoutError` once the deadline is reached."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
