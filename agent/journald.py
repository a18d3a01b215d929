# SPDX-License-Identifier: MIT
"""Sends to journald's sockets, also while journald is stopped, hangs, or is started again.

sd_journal_sendv(3) blocks without a limit if journald hangs and its socket is full. It fails if journald is
stopped, and the record is lost. A service's standard error is a stream to journald. After a stop of
journald, that stream stays broken (systemd src/journal/journald-stream.c).
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
import syslog
import threading
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

from credferry.launcher.journal import SOCKET, serialized

if TYPE_CHECKING:
    from collections.abc import Sequence

_STREAM = "/run/systemd/journal/stdout"
_SECONDS = 1.0
_PATIENCE_SECONDS = 60.0
_QUICK_SECONDS = 0.05
"""A send that is faster than this does not count as a wait."""
_UNSENT_MAX = 1000
_STANDARD_ERROR = 2


class Sender:
    """Sends records in order. A record that cannot be sent is kept, and sent before later ones.

    If journald hangs or is slow, all sends together wait at most about a second in a minute. Meanwhile the
    newest `_UNSENT_MAX` records are kept. Any thread may send.
    """

    def __init__(self, path: str = SOCKET) -> None:
        self._path = path
        self._unsent: deque[bytes] = deque(maxlen=_UNSENT_MAX)
        self._lock = threading.Lock()
        self._wait_left = _SECONDS
        self._patient_again = 0.0
        """When sends may wait again, in seconds on the monotonic clock."""

    @property
    def is_behind(self) -> bool:
        """Whether there are records that could not be sent yet."""
        return bool(self._unsent)

    def send(self, fields: Sequence[str]) -> bool:
        """Send a record of ``NAME=value`` fields, or keep it for later. Takes a second at most.

        Returns whether this record and all earlier ones were sent. Raises nothing.
        """
        record = serialized((name, value) for name, _, value in (each.partition("=") for each in fields))
        with self._lock:
            if record not in self._unsent:  # a record that is sent again may still be in the queue
                self._unsent.append(record)
            began = time.monotonic()
            if began >= self._patient_again:
                self._wait_left = _SECONDS
            with (
                suppress(OSError),
                socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as peer,
            ):
                while self._unsent:
                    _be_patient(peer, began + self._wait_left - time.monotonic())
                    _send(peer, self._path, self._unsent[0])
                    self._unsent.popleft()
            took = time.monotonic() - began
            if took >= _QUICK_SECONDS:
                self._wait_left = max(0.0, self._wait_left - took)
                self._patient_again = began + took + _PATIENCE_SECONDS
            return not self._unsent


def _be_patient(peer: socket.socket, seconds: float) -> None:
    """Set how long the next send may wait for room in journald's queue."""
    if seconds <= 0:
        peer.setblocking(False)
    else:  # 0 would mean no limit
        whole = max(1, int(seconds * 1_000_000))
        peer.setsockopt(
            socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", whole // 1_000_000, whole % 1_000_000)
        )


def reconnect_standard_error(identifier: str) -> bool:
    """Connect standard error to journald again. False if it was no such stream, or journald is not there."""
    if "JOURNAL_STREAM" not in os.environ:
        return False
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as peer:
            peer.settimeout(_SECONDS)
            peer.connect(_STREAM)
            # As in sd_journal_stream_fd(3): identifier, unit (empty: journald finds it), priority, whether a
            # line may have a priority prefix, and three flags for copies.
            peer.sendall(f"{identifier}\n\n{syslog.LOG_INFO}\n1\n0\n0\n0\n".encode())
            peer.settimeout(None)
            os.dup2(peer.fileno(), _STANDARD_ERROR)
    except OSError:
        return False
    return True


def _send(peer: socket.socket, path: str, record: bytes) -> None:
    try:
        peer.sendmsg([record], [], 0, path)
    except OSError as error:
        if error.errno not in {errno.EMSGSIZE, errno.ENOBUFS}:
            raise
        # Too large for a datagram: journald accepts a sealed memory file instead.
        descriptor = os.memfd_create("record", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        with os.fdopen(descriptor, "wb") as file:
            file.write(record)
            file.flush()
            seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("@i", descriptor))
            peer.sendmsg([b""], [rights], 0, path)
