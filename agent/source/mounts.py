# SPDX-License-Identifier: MIT
"""Hints that something was mounted or unmounted on the way to the source. inotify does not see that.

The kernel reports each change of the table of mounts (proc(5), mountinfo: "poll"). A hint carries no data.
If the table cannot be watched, the resync finds the change.
"""

from __future__ import annotations

import os
import select
import threading
from contextlib import suppress
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_TABLE = "/proc/self/mountinfo"
_CHUNK = 1 << 16
_ESCAPES = {"\\040": " ", "\\011": "\t", "\\012": "\n", "\\134": "\\"}


class MountTable:
    """Watches the table in a thread of its own. ``hint`` must return at once and not raise."""

    def __init__(self, hint: Callable[[str], None]) -> None:
        self._hint = hint
        self.paths: frozenset[str] = frozenset()
        """Directories. A mount on one of them, or above it, causes a hint."""
        self._thread: threading.Thread | None = None
        self._wake = -1

    def start(self) -> None:
        """Begin to watch. Does nothing where the table cannot be opened."""
        try:
            table = os.open(_TABLE, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return
        read, self._wake = os.pipe2(os.O_CLOEXEC)
        self._thread = threading.Thread(target=self._run, args=(table, read), name="mounts", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop watching, and wait for the thread to end."""
        if self._thread is None:
            return
        os.close(self._wake)
        self._thread.join(timeout=5)
        self._thread = None

    def _run(self, table: int, wake: int) -> None:
        poll = select.poll()
        poll.register(table, select.POLLPRI)
        poll.register(wake, 0)
        before = self._mounts(table)
        try:
            while all(descriptor != wake for descriptor, _ in poll.poll()):
                now = self._mounts(table)
                if now != before:
                    self._hint("mount")
                before = now
        finally:
            os.close(table)
            os.close(wake)

    def _mounts(self, table: int) -> list[tuple[bytes, bytes]]:
        """The ids and mount points of the mounts on `paths` or above them."""
        content = bytearray()
        with suppress(OSError):
            os.lseek(table, 0, os.SEEK_SET)
            while chunk := os.read(table, _CHUNK):
                content += chunk
        places = {_escaped(str(each)) for path in self.paths for each in _up(path)}
        rows = [line.split(b" ", 5) for line in bytes(content).splitlines()]
        return [(row[0], row[4]) for row in rows if len(row) > 4 and row[4] in places]  # noqa: PLR2004 (proc(5): the mount point is the fifth)


def _up(path: str) -> list[PurePosixPath]:
    pure = PurePosixPath(path)
    return [pure, *pure.parents]


def _escaped(path: str) -> bytes:
    for escape, character in reversed(_ESCAPES.items()):
        path = path.replace(character, escape)
    return os.fsencode(path)
