# SPDX-License-Identifier: MIT
"""One consistent snapshot of the published secrets.

A snapshot opens one directory and reads everything relative to it, so it never mixes two generations. If
the source points elsewhere after the read, the snapshot is taken again. A test that read through the
symlink instead, under hostile swapping, mixed generations 538 times in 48,000 reads.
"""

from __future__ import annotations

import enum
import errno
import os
import stat
from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from credferry.agent.errors import HiddenSourceError, SourceError
from credferry.agent.sealing.credential import PLAINTEXT_MAX
from credferry.agent.source import sandbox
from credferry.agent.source.trail import LINKS_MAX, Symlink, Trail
from credferry.launcher.handoff import Secret

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

_ATTEMPTS = 20


class Problem(enum.StrEnum):
    """Why a published name has no value."""

    ABSENT = "is not published"
    EMPTY = "is empty"
    TOO_LARGE = f"is over the limit of {PLAINTEXT_MAX} bytes"
    NOT_A_FILE = "is not a regular file"
    ESCAPES = "leads out of the source by a symbolic link"
    BEING_WRITTEN = "is being written"
    UNREADABLE = "cannot be read"

    @property
    def remedy(self) -> str:
        """What the operator can do about it."""
        return _REMEDIES[self]


_REMEDIES = {
    Problem.ABSENT: "publish it, or say required = false",
    Problem.EMPTY: "publish a value, or say required = false",
    Problem.TOO_LARGE: "publish a smaller one",
    Problem.NOT_A_FILE: "publish it as a file",
    Problem.ESCAPES: "publish a file, or say follow_links = true in [source]",
    Problem.BEING_WRITTEN: "look again",
    Problem.UNREADABLE: "see its mode and owner; run as root",
}


@dataclass(frozen=True, slots=True)
class SourceGeneration:
    """The directory that was read. Device and inode show whether a later read sees the same directory."""

    device: int
    inode: int
    committed: bool
    """Whether the source is a symlink. Its first content then counts as published whole."""
    way: tuple[Symlink, ...] = ()
    """The links that stand for a directory on the way to the source. Swapping one is a commit."""

    def is_swap_of(self, before: SourceGeneration | None) -> bool:
        """Whether the swap of a link put this generation in place after the generation ``before``.

        A directory that was removed and made again is not a swap: the producer fills it bit by bit.
        """
        if before is None or before == NOTHING:
            return self.committed
        return self.way != before.way and self.leads_to != before.leads_to

    @property
    def leads_to(self) -> tuple[object, ...]:
        """The directory, and each link's target. A link made again with its old target is no swap."""
        return self.device, self.inode, [(link.path, link.target) for link in self.way]


NOTHING = SourceGeneration(0, 0, committed=True)
"""Stands for a source that does not exist."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The content of the source at one moment, for the requested names."""

    generation: SourceGeneration
    values: Mapping[str, Secret | Problem]


class _MovedError(Exception):
    """The source pointed elsewhere while it was being read."""


def take(path: Path, names: Iterable[str], *, follow_links: bool = False) -> Snapshot:
    """Read the named secrets from one generation of the source.

    A single name that cannot be read gives a `Problem`, not an error. Raises `SourceError` when the source
    cannot be opened, or when it changes faster than it can be read.
    """
    wanted = sorted(names)
    for _ in range(_ATTEMPTS):
        try:
            return _take_once(path, wanted, follow_links)
        except _MovedError:
            continue
    raise SourceError(
        f"source {path}: changed {_ATTEMPTS} times while it was being read",
        hint="see what keeps publishing; the next look tries again",
    )


def _take_once(path: Path, names: list[str], follow_links: bool) -> Snapshot:
    trail = Trail()
    start = trail.follow(os.path.abspath(path), to_directory=True)  # noqa: PTH100 (done in each cycle)
    with ExitStack() as stack:
        target = _target(path)
        try:
            top = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            # The link was swapped, and its old target removed, while the kernel followed the path.
            if _target(path) != target or trail.has_moved():
                raise _MovedError from None
            found = sandbox.hidden(sandbox.of_this_process(), str(path))
            if found:
                raise HiddenSourceError(f"source {path}: {found.text}", hint=found.remedy) from None
            raise SourceError(
                f"source {path}: {os.strerror(error.errno or 0)}",
                hint="is the producer (sops-install-secrets.service, agenix) done? see source.path",
            ) from None
        stack.callback(os.close, top)
        status = os.fstat(top)
        if follow_links and start is not None:
            for name in names:
                trail.follow(name, start)
        way = tuple(trail.links.values())
        generation = SourceGeneration(status.st_dev, status.st_ino, committed=target is not None, way=way)
        values = {name: _read(top, name, follow_links) for name in names}
        # Compare after reading: if the producer removed the directory meanwhile, names look absent
        # that are not.
        try:
            after = path.stat()
        except OSError:
            raise _MovedError from None
        if (after.st_dev, after.st_ino) != (generation.device, generation.inode) or trail.has_moved():
            raise _MovedError
        return Snapshot(generation, values)


def _target(path: Path) -> str | None:
    try:
        return os.readlink(path)  # noqa: PTH115 (done in each cycle)
    except OSError:
        return None


_PROBLEMS = {
    errno.ENOENT: Problem.ABSENT,
    errno.ENOTDIR: Problem.ABSENT,
    errno.EISDIR: Problem.NOT_A_FILE,
    errno.ENXIO: Problem.NOT_A_FILE,
    errno.EXDEV: Problem.ESCAPES,
    errno.ELOOP: Problem.ESCAPES,
}


def _read(top: int, name: str, follow_links: bool) -> Secret | Problem:
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
    with ExitStack() as stack:
        directories = [top]
        parts = deque(name.split("/"))
        links = 0
        while parts:
            part = parts.popleft()
            if part in {"", "."}:
                continue
            if part == "..":
                directories.pop()
                if not directories:
                    raise OSError(errno.EXDEV, "")
                continue
            target = _link_target(directories[-1], part)
            if target is not None:
                links += 1
                if target.startswith("/") or links > LINKS_MAX:
                    raise OSError(errno.EXDEV if links <= LINKS_MAX else errno.ELOOP, "")
                parts.extendleft(reversed(target.split("/")))
            elif parts:
                flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                directories.append(os.open(part, flags, dir_fd=directories[-1]))
                stack.callback(os.close, directories[-1])
            else:
                return os.open(part, _FLAGS_NO_LINK, dir_fd=directories[-1])
    raise IsADirectoryError(errno.EISDIR, "")


def _link_target(directory: int, name: str) -> str | None:
    try:
        return os.readlink(name, dir_fd=directory)
    except OSError as error:
        if error.errno == errno.EINVAL:  # it exists, and is not a link
            return None
        raise
