# SPDX-License-Identifier: MIT
"""HTTP/1.1 on a stream socket, as narrow as cloud-hypervisor's own server.

After the micro_http crate that v53 uses: GET, PUT and PATCH only, header lines of at most 1024 bytes,
bodies of at most 51,200 bytes, descriptors by SCM_RIGHTS; a request that it cannot read is answered with
400 under another server's name.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import socket
from dataclasses import dataclass, field

MAX_BODY = 51_200
_MAX_LINE = 1024
_MAX_DESCRIPTORS = 253
_METHODS = frozenset({b"GET", b"PUT", b"PATCH"})
_VERSIONS = frozenset({b"HTTP/1.0", b"HTTP/1.1"})


class MalformedError(Exception):
    """A request that cannot be read. Like the real one's, the text may quote what was sent."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request; ``body`` is None where there was no body at all. Descriptors are the receiver's."""

    method: str
    path: str
    body: bytes | None
    descriptors: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Response:
    """One answer; ``body`` is JSON text, or None for no content."""

    status: int
    body: bytes | None = None

    def to_bytes(self, server: str = "Cloud Hypervisor API") -> bytes:
        """The answer on the wire. The real one sends no reason phrase."""
        head = f"HTTP/1.1 {self.status} \r\nServer: {server}\r\nConnection: keep-alive\r\n"
        if self.body is not None:
            head += f"Content-Type: application/json\r\nContent-Length: {len(self.body)}\r\n"
        return head.encode() + b"\r\n" + (self.body or b"")


@dataclass(slots=True)
class Connection:
    """One client. Reads what has arrived; hands out whole requests."""

    stream: socket.socket
    _buffer: bytes = b""
    _descriptors: list[int] = field(default_factory=list)
    _told_to_continue: bool = False

    def fileno(self) -> int:
        """For a selector."""
        return self.stream.fileno()

    def close(self) -> None:
        """Close the stream and every descriptor that no request has taken."""
        self.stream.close()
        while self._descriptors:
            os.close(self._descriptors.pop())

    def receive(self) -> bool:
        """Read once; False when the client is gone."""
        space = socket.CMSG_SPACE(_MAX_DESCRIPTORS * array.array("i").itemsize)
        try:
            data, ancillary, _flags, _address = self.stream.recvmsg(65_536, space, socket.MSG_CMSG_CLOEXEC)
        except OSError:
            return False
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                numbers = array.array("i")
                numbers.frombytes(content[: len(content) - len(content) % numbers.itemsize])
                self._descriptors += numbers
        self._buffer += data
        return bool(data)

    def next_request(self) -> Request | None:
        """The next whole request, or None. Raises `MalformedError`, and drops what has arrived."""
        try:
            return self._parse()
        except MalformedError:
            self._buffer = b""
            raise

    def send(self, response: Response) -> None:
        """Answer; a client that is gone misses it."""
        self._send(response.to_bytes())

    def send_malformed(self, error: MalformedError) -> None:
        """Answer what could not be read."""
        text = f"{error}\nAll previous unanswered requests will be dropped."
        body = b'{ "error": ' + json.dumps(text, ensure_ascii=False).replace("\\n", "\n").encode() + b" }"
        self._send(Response(400, body).to_bytes("Firecracker API"))

    def _send(self, data: bytes) -> None:
        with contextlib.suppress(OSError):
            self.stream.settimeout(5)
            self.stream.sendall(data)

    def _parse(self) -> Request | None:
        head, separator, rest = self._buffer.partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        if any(len(line) > _MAX_LINE for line in lines):
            raise MalformedError("Invalid header. Reason: Header line is too long.")
        if not separator:
            return None
        method, path = _request_line(lines[0])
        headers = _headers(lines[1:])
        length = _content_length(headers.get("content-length"))
        if headers.get("expect", "").lower() == "100-continue" and not self._told_to_continue:
            self._told_to_continue = True
            self._send(Response(100).to_bytes("Firecracker API"))
        if len(rest) < length:
            return None
        self._told_to_continue = False
        self._buffer = rest[length:]
        taken, self._descriptors = tuple(self._descriptors), []
        return Request(method, path, rest[:length] if length else None, taken)


def _request_line(line: bytes) -> tuple[str, str]:
    try:
        method, target, version = line.split(b" ")
        path = target.decode("ascii")
    except ValueError:
        raise MalformedError("Invalid request.") from None
    if method not in _METHODS:
        raise MalformedError("Invalid HTTP Method: Unsupported HTTP method.")
    if version not in _VERSIONS:
        raise MalformedError("Invalid HTTP Version: Unsupported HTTP version.")
    if path.startswith("http://"):
        path = "/" + path.removeprefix("http://").partition("/")[2]
    return method.decode(), path


def _headers(lines: list[bytes]) -> dict[str, str]:
    found = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon:
            raise MalformedError(f"Invalid header. Reason: Invalid format. Header: {line!r}")
        found[name.strip().lower().decode("latin-1")] = value.strip().decode("latin-1")
    return found


def _content_length(given: str | None) -> int:
    if given is None:
        return 0
    if not given.isdecimal():
        raise MalformedError(f"Invalid header. Reason: Invalid content length. Header: {given}")
    if int(given) > MAX_BODY:
        raise MalformedError(
            f"Request payload with size {given} is larger than the limit of {MAX_BODY} allowed by server."
        )
    return int(given)
