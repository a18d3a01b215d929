# SPDX-License-Identifier: MIT
"""The way to a path: the directories that it leads through, its names in them, and the links on it.

`Trail` follows a path step by step, as the kernel does. If any step changes, the path can lead elsewhere. So
these are the places to watch.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from dataclasses import dataclass, field

LINKS_MAX = 40
"""The kernel's own limit (MAXSYMLINKS)."""


@dataclass(frozen=True, slots=True)
class Symlink:
    """A symlink as it was at one moment. One that replaces it has another inode."""

    path: str
    target: str
    device: int
    inode: int


@dataclass(slots=True)
class Trail:
    """The ways to any number of paths. Each place is read once only, so this is fast."""

    names: dict[str, set[str]] = field(default_factory=dict)
    """By directory: its entries that the ways lead through. The last entry of a way may not exist."""
    links: dict[str, Symlink] = field(default_factory=dict)
    """By path: the links that stand for a directory on a way. Replacing one moves everything below it."""
    _seen: dict[str, Symlink | None] = field(default_factory=dict)

    def follow(self, path: str, start: str = "/", *, to_directory: bool = False) -> str | None:
        """The path with all links resolved; None where a step does not exist, or links form a loop.

        A relative path begins at ``start``, which has no links in it. ``to_directory`` says that the path
        itself stands for a directory, so that a link at its end counts among `links`.
        """
        here, todo, links = "/" if path.startswith("/") else start, deque(path.split("/")), 0
        while todo:
            part = todo.popleft()
            if part in {"", "."}:
                continue
            if part == "..":
                here = os.path.dirname(here)  # noqa: PTH120 (done for each secret in each cycle)
                continue
            self.names.setdefault(here, set()).add(part)
            place = os.path.join(here, part)  # noqa: PTH118 (the same)
            try:
                link = self._link(place)
            except OSError:
                return None
            if link is None:
                here = place
                continue
            links += 1
            if links > LINKS_MAX:
                return None
            if todo or to_directory:
                self.links[place] = link
            if link.target.startswith("/"):
                here = "/"
            todo.extendleft(reversed(link.target.split("/")))
        return here

    def has_moved(self) -> bool:
        """Whether one of the links has been replaced since it was followed."""
        for path, link in self.links.items():
            try:
                if read_link(path) != link:
                    return True
            except OSError:
                return True
        return False

    def _link(self, place: str) -> Symlink | None:
        if place not in self._seen:
            self._seen[place] = read_link(place)
        return self._seen[place]


def read_link(path: str) -> Symlink | None:
    """Read a symlink; None for another kind of file. Raises OSError where there is nothing."""
    try:
        target = os.readlink(path)  # noqa: PTH115 (done for each secret in each cycle)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return None
        raise
    status = os.lstat(path)
    return Symlink(path, target, status.st_dev, status.st_ino)
