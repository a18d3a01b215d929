# SPDX-License-Identifier: MIT
"""Records reach journald's socket in their order, now or later, and nobody waits for long."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from credferry.agent.journald import Sender
from tests.support.modules import MODULES

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def path() -> Iterator[Path]:
    """Where a socket may be bound: its path may not be long."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        yield Path(directory) / "socket"


def listen(path: Path) -> socket.socket:
    """A journald that listens, and does no more by itself."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.bind(str(path))
    listener.settimeout(10)
    return listener


def fill(path: Path) -> int:
    """Fill the queue of a journald that reads nothing; with how many datagrams."""
    sent = 0
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other, suppress(BlockingIOError):
        other.setblocking(False)
        while True:
            other.sendto(b"", str(path))
            sent += 1
    return sent


def test_a_record_in_the_native_protocol(path: Path) -> None:
    """Fields are lines; one with a line break gives its length instead, as little-endian 64 bits."""
    with listen(path) as listener:
        Sender(str(path)).send(["MESSAGE=a=b", "OTHER=two\nlines"])
        assert listener.recv(4096) == b"MESSAGE=a=b\nOTHER\n\x09\0\0\0\0\0\0\0two\nlines\n"


def test_what_cannot_be_sent_goes_before_what_can(path: Path) -> None:
    """Without a socket, with one that nobody listens to, and with a full one, records are kept in order."""
    sender = Sender(str(path))
    sender.send(["NUMBER=0"])
    listen(path).close()
    sender.send(["NUMBER=1"])
    with listen(path) as listener:
        sent = fill(path)
        sender.send(["NUMBER=2"])  # would hang here for ever
        for _ in range(sent):
            assert listener.recv(4096) == b""
        sender.send(["NUMBER=3"])
        assert [listener.recv(4096) for _ in range(4)] == [b"NUMBER=%d\n" % number for number in range(4)]


def test_a_journald_that_hangs_is_waited_for_once(path: Path) -> None:
    """However many records there are, they wait for a second in all, and arrive in their order."""
    sender = Sender(str(path))
    with listen(path) as listener:
        filled = fill(path)
        began = time.monotonic()
        for number in range(50):
            assert not sender.send([f"NUMBER={number}"])
        assert time.monotonic() - began < 25  # a second each would be 50
        assert sender.is_behind
        for _ in range(filled):
            assert listener.recv(4096) == b""
        received = []
        while sender.is_behind:
            sender.send(["NUMBER=49"])
            while select.select([listener], [], [], 0)[0]:
                received.append(listener.recv(4096))
        assert received == [b"NUMBER=%d\n" % number for number in range(50)]


def test_a_slow_journald_is_waited_for_no_longer(path: Path) -> None:
    """One that takes a record only after a while costs a second of each minute, too."""
    sender = Sender(str(path))
    with listen(path) as listener:
        fill(path)
        stop = threading.Event()

        def read_slowly() -> None:
            while not stop.wait(0.7):
                listener.recv(4096)

        reader = threading.Thread(target=read_slowly)
        reader.start()
        began = time.monotonic()
        for number in range(60):
            sender.send([f"NUMBER={number}"])
        took = time.monotonic() - began
        stop.set()
        reader.join()
        assert took < 20  # 0.7 s each would be 42


def test_messages_do_not_wait_for_a_journald_that_hangs() -> None:
    """Standard error, where that is a stream to journald, is written to only while it has room."""
    script = """
import os, socket, sys
from credferry.agent import log
log.configure()
ours, theirs = socket.socketpair()
os.dup2(ours.fileno(), 2)
logger = log._Logger()
for _ in range(10_000):
    logger.msg("x" * 100)
print("not waited for")
"""
    ended = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"JOURNAL_STREAM": "0:0", "PYTHONPATH": str(MODULES)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert ended.stdout == "not waited for\n"


def test_no_more_than_so_many_are_kept(path: Path) -> None:
    """Of those that cannot be sent the last 1000 are kept: the audit's chain shows what is missing."""
    sender = Sender(str(path))
    for number in range(1005):
        sender.send([f"NUMBER={number}"])
    with listen(path) as listener:
        # The receiver's queue is shorter: each send takes a second, and then the rest stays for later.
        for expected in range(6, 12):
            if expected == 6:
                sender.send(["NUMBER=1005"])
            assert listener.recv(4096) == b"NUMBER=%d\n" % expected


def test_a_record_too_large_for_a_datagram(path: Path) -> None:
    """It goes as a sealed file in memory, as journald takes it."""
    with listen(path) as listener:
        Sender(str(path)).send(["MESSAGE=" + "x" * (1 << 20)])
        data, descriptors, _, _ = socket.recv_fds(listener, 4096, 1)
        assert data == b""
        with os.fdopen(descriptors[0], "rb") as file:
            file.seek(0)
            assert file.read() == b"MESSAGE=" + b"x" * (1 << 20) + b"\n"
