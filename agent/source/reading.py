# SPDX-License-Identifier: MIT
"""Reads one secret below the source: only regular files, no link out of the source, and it never blocks."""

from __future__ import annotations

import enum
import errno
import os
import stat
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING

from credferry.agent.sealing.credential import PLAINTEXT_MAX
from credferry.agent.source.trail import LINKS_MAX
from credferry.launcher.handoff import Secret

if TYPE_CHECKING:
    from collections.abc import Iterator


class Problem(enum.StrEnum):
    """Why a published name has no value."""

    ABSENT = "is not published"
    EMPTY = "is empty"
    TOO_LARGE = f"is over the limit of {PLAINTEXT_MAX} bytes"
    NOT_A_FILE = "is not a regular file"
    ESCAPES = "leads out of the source by a symbolic link"
    BEING_WRITTEN = "is being written"
    UNREADABLE = "cannot be read"
    DOCUMENT_TOO_LARGE = "is in a file over the limit for files with fields"
    MALFORMED = "is in a file that cannot be parsed"
    NO_FIELD = "does not exist"
    FIELD_TWICE = "exists twice"
    NOT_A_TEXT = "is not a text, a number or a truth value"

    @property
    def remedy(self) -> str:
        """What the operator can do about it."""
        return _REMEDIES[self]


_REMEDIES = {
    Problem.ABSENT: "publish it, or set required = false",
    Problem.EMPTY: "publish a value, or set required = false",
    Problem.TOO_LARGE: "publish a smaller value",
    Problem.NOT_A_FILE: "publish a regular file",
    Problem.ESCAPES: "publish a file, or set follow_links = true for its source",
    Problem.BEING_WRITTEN: "the agent checks again",
    Problem.UNREADABLE: "check its mode and owner; run as root",
    Problem.DOCUMENT_TOO_LARGE: "publish a file of at most 64 KiB",
    Problem.MALFORMED: "correct the file, or the credential's format",
    Problem.NO_FIELD: "publish it, correct field, or set required = false",
    Problem.FIELD_TWICE: "remove one of them",
    Problem.NOT_A_TEXT: "name a field below it",
}


_PROBLEMS = {
    errno.ENOENT: Problem.ABSENT,
    errno.ENOTDIR: Problem.ABSENT,
    errno.EISDIR: Problem.NOT_A_FILE,
    errno.ENXIO: Problem.NOT_A_FILE,
    errno.EXDEV: Problem.ESCAPES,
    errno.ELOOP: Problem.ESCAPES,
}


def read_secret(top: int, name: str, *, follow_links: bool) -> Secret | Problem:
    """The secret of this name below the directory ``top``, or why there is none. Raises nothing."""
    try:
        descriptor = _open_following(top, name) if follow_links else _open_beneath(top, name)
        try:
            return _read_file(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        return _PROBLEMS.get(error.errno or 0, Problem.UNREADABLE)


def _read_file(descriptor: int) -> Secret | Problem:
    before = os.fstat(descriptor)
    if not stat.S_ISREG(before.st_mode):
        return Problem.NOT_A_FILE
    # Most often one read gets everything. The file's size after the read shows that there is no more.
    data = os.read(descriptor, min(before.st_size, PLAINTEXT_MAX) + 1)
    if len(data) != before.st_size:
        data = _read_on(descriptor, data)
    after = os.fstat(descriptor)
    if len(data) > PLAINTEXT_MAX:
        return Problem.TOO_LARGE
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        return Problem.BEING_WRITTEN
    return Secret(data) if data else Problem.EMPTY


def _read_on(descriptor: int, first: bytes) -> bytes:
    """Read to the end, or until the data is one byte over the limit."""
    data = bytearray(first)
    while len(data) <= PLAINTEXT_MAX:
        chunk = os.read(descriptor, PLAINTEXT_MAX + 1 - len(data))
        if not chunk:
            break
        data += chunk
    return bytes(data)


# O_NONBLOCK: opening a FIFO must not wait for its writer, and opening a device not for its carrier.
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_FLAGS_NO_LINK = _FLAGS | os.O_NOFOLLOW
_DEPTH_MAX = 64
"""Limit for directories within the source. Each is open meanwhile, and the agent has other files to open."""


def _open_following(top: int, name: str) -> int:
    return os.open(name, _FLAGS, dir_fd=top)


def _open_beneath(top: int, name: str) -> int:
    """Open like openat2(2) with RESOLVE_BENEATH, which Python does not offer.

    Raises OSError: EXDEV for a link that leads out of the source, ELOOP for too many links.
    """
    if "/" not in name:
        try:
            return os.open(name, _FLAGS_NO_LINK, dir_fd=top)
        except OSError:
            pass  # a link, or missing: the loop below finds out
    parts = deque(name.split("/"))
    links = 0
    with _below(top) as directories:
        while parts:
            part = parts.popleft()
            if part in {"", "."}:
                continue
            if part == "..":
                _go_up(directories)
                continue
            target = _link_target(directories[-1], part)
            if target is not None:
                links += 1
                if target.startswith("/") or links > LINKS_MAX:
                    raise OSError(errno.EXDEV if links <= LINKS_MAX else errno.ELOOP, "")
                parts.extendleft(reversed(target.split("/")))
            elif parts:
                _go_down(directories, part)
            else:
                return os.open(part, _FLAGS_NO_LINK, dir_fd=directories[-1])
    raise IsADirectoryError(errno.EISDIR, "")


@contextmanager
def _below(top: int) -> Iterator[list[int]]:
    """The open directories from ``top`` to where a way has got. All but ``top`` are closed at its end."""
    directories = [top]
    try:
        yield directories
    finally:
        for each in directories[1:]:
            os.close(each)


def _go_up(directories: list[int]) -> None:
    if len(directories) == 1:
        raise OSError(errno.EXDEV, "")
    os.close(directories.pop())


def _go_down(directories: list[int], name: str) -> None:
    if len(directories) > _DEPTH_MAX:
        raise OSError(errno.ENAMETOOLONG, "")
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    directories.append(os.open(name, flags, dir_fd=directories[-1]))


def _link_target(directory: int, name: str) -> str | None:
    try:
        return os.readlink(name, dir_fd=directory)
    except OSError as error:
        if error.errno == errno.EINVAL:  # it exists, and is not a link
            return None
        raise
