# SPDX-License-Identifier: MIT
"""The API client against a server that behaves, and servers that do not; and journal records."""

from __future__ import annotations

import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest

from credferry.launcher import journal
from credferry.launcher.handoff import Delivery, Kind, Manifest, ManifestEntry
from credferry.launcher.hypervisor import api
from tests.support.host import patience

from .conftest import CANARY, within

if TYPE_CHECKING:
    from pathlib import Path


def put(path: Path, answer: bytes, *, seconds: float = 20.0, body: bytes = b"") -> tuple[api.Answer, bytes]:
    """One request to a server that reads it whole, gives this answer and closes; and what it read."""
    heard = bytearray()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(str(path))
        listening.listen()

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                while b"\r\n\r\n" not in heard or not heard.endswith(body):
                    if not (more := connection.recv(65536)):
                        return  # the client's time was over before it had sent all
                    heard.extend(more)
                connection.sendall(answer)
                if seconds < 1:
                    connection.recv(1)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            connection = api.connect(str(path), time.monotonic() + within())
            deadline = time.monotonic() + seconds * patience()
            return api.put(connection, "vm.create", deadline=deadline, body=body), bytes(heard)
        finally:
            thread.join()


@pytest.mark.parametrize(
    ("answer", "status", "body"),
    [
        (b"HTTP/1.1 204 \r\nServer: x\r\n\r\n", 204, b""),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", 200, b"{}"),
        (b"HTTP/1.1 500 \r\ncontent-length:3\r\n\r\nabcdef", 500, b"abc"),
        (b"HTTP/1.1 100 \r\n\r\nHTTP/1.1 204 \r\n\r\n", 204, b""),
    ],
)
def test_an_answer_is_read_whole(answer: bytes, status: int, body: bytes, tmp_path: Path) -> None:
    """Status and as much of a body as it says."""
    got, heard = put(tmp_path / "s", answer, body=b'{"a":1}')
    assert (got.status, got.body) == (status, body)
    assert heard.startswith(b"PUT /api/v1/vm.create HTTP/1.1\r\n")
    assert b"Content-Length: 7\r\n" in heard


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"", "closed before the answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}", "closed before the answer"),
        (b"SSH-2.0-x\r\n\r\n", "not HTTP"),
        (b"x" * 20_000, "too large"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\n", "too large"),
    ],
)
def test_a_bad_answer_is_an_error(answer: bytes, said: str, tmp_path: Path) -> None:
    """Bounded, and without what was sent or received."""
    with pytest.raises(api.ApiError, match=said):
        put(tmp_path / "s", answer, body=CANARY.encode())


def test_no_answer_is_an_error_in_time(tmp_path: Path) -> None:
    """A server that says nothing does not hold the launcher."""
    with pytest.raises(api.ApiError, match="no answer in time"):
        put(tmp_path / "s", b"", seconds=0.2)


def test_an_answer_does_not_show_its_body() -> None:
    """It can quote the configuration."""
    assert CANARY not in repr(api.Answer(500, CANARY.encode()))


def test_a_journal_record_tells_the_generation_and_no_value(tmp_path: Path) -> None:
    """As in journald's native protocol: one datagram, a line a field."""
    manifest = Manifest(
        "web",
        3,
        "ab" * 32,
        "cd" * 16,
        Delivery(),
        (ManifestEntry("A", Kind.PLAIN, "0" * 16), ManifestEntry("B", Kind.TEXT, "1" * 16)),
    )
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journald:
        journald.bind(str(tmp_path / "socket"))
        journal.send(
            "two\nlines",
            message_id="f" * 32,
            priority=journal.INFO,
            extra=journal.fields(manifest),
            path=str(tmp_path / "socket"),
        )
        record = journald.recv(65536)
    assert record == (
        b"MESSAGE\n\x09\0\0\0\0\0\0\0two\nlines\nMESSAGE_ID=" + b"f" * 32 + b"\nPRIORITY=6\n"
        b"SYSLOG_IDENTIFIER=credferry-launch\nCREDFERRY_VM=web\nCREDFERRY_GENERATION=3\n"
        b"CREDFERRY_RUN=" + b"cd" * 16 + b"\nCREDFERRY_CHANNEL=api\nCREDFERRY_DIGEST=abababababababab\n"
        b"CREDFERRY_CREDENTIAL=A\nCREDFERRY_CREDENTIAL=B\n"
    )


def test_no_journal_is_no_failure(tmp_path: Path) -> None:
    """A VM starts without one."""
    journal.send("x", message_id="f" * 32, priority=journal.INFO, path=str(tmp_path / "nobody"))
