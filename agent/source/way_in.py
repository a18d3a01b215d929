# SPDX-License-Identifier: MIT
"""Opens a source's directory, and follows no link of a user that leads to another user's secrets.

A producer that is not root can often replace its own directory by a link, because it can write to the
directory above. The agent can read everything. It would read for that user what the user cannot read.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from typing import Final

from credferry.agent.source.trail import LINKS_MAX

_LINK: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_STEP: Final = _LINK | os.O_DIRECTORY


class ForeignLinkError(Exception):
    """A link on the way belongs to a user who is not trusted for this directory.

    Trusted are root, the agent's user, and the owner of the directory that the path leads to.
    """

    def __init__(self, link: str, owner: int) -> None:
        super().__init__(
            f"{link!a} is a link of user {owner}, who does not own the directory that it leads to"
        )
        self.link = link


def open_directory(path: str) -> int:
    """Open the directory that a path leads to, links followed. Raises OSError and `ForeignLinkError`.

    Each step begins at the descriptor of the step before. So nobody can replace a link between the check of
    its owner and its use.
    """
    links: list[tuple[str, int]] = []
    here = os.open("/", _STEP)
    try:
        parts = deque(path.split("/"))
        while parts:
            part = parts.popleft()
            try:
                here = _instead(here, os.open(part or ".", _STEP, dir_fd=here))
                continue
            except NotADirectoryError:
                target, owner = _read_link(part, here)
            links.append((part, owner))
            if len(links) > LINKS_MAX:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            if target.startswith("/"):
                here = _instead(here, os.open("/", _STEP))
            parts.extendleft(reversed(target.split("/")))
        found = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=here)
    finally:
        os.close(here)
    trusted = {0, os.geteuid(), os.fstat(found).st_uid}
    for link, owner in links:
        if owner not in trusted:
            os.close(found)
            raise ForeignLinkError(link, owner)
    return found


def _read_link(name: str, directory: int) -> tuple[str, int]:
    """A link's target and owner, both of the same link. Raises OSError for what is no link."""
    link = os.open(name, _LINK, dir_fd=directory)
    try:
        status = os.fstat(link)
        if not stat.S_ISLNK(status.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return os.readlink("", dir_fd=link), status.st_uid
    finally:
        os.close(link)


def _instead(old: int, new: int) -> int:
    os.close(old)
    return new
