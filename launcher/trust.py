# SPDX-License-Identifier: MIT
"""Path checks for root's helpers of a VM: they read and run only files that root alone can change.

A VM's user must not decide what root does. So root must own each component of the path, and of the targets
of links on it. Other users must not have write access. A sticky directory such as /tmp may be writable:
only root can replace root's entries there. So only root can change what the path leads to, before the check
and after it.
"""

from __future__ import annotations

import errno
import os
import stat

from credferry.launcher.errors import Exit, LaunchError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_LINKS_MAX: Final = 40
"""The kernel's limit (MAXSYMLINKS)."""
_DIRECTORY: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


def open_file(path: str) -> int:
    """A descriptor of a regular file that only root can change. Without root, opens any file unchecked.

    Raises `LaunchError` (USAGE), which names the component that another user can change, and `OSError`.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    if os.geteuid() != 0:
        return os.open(path, flags)
    reached = _walk(path)
    try:
        status = os.fstat(reached)
        if not stat.S_ISREG(status.st_mode):
            raise _refuse(path, "is not a regular file")
        return os.open(f"/proc/self/fd/{reached}", flags)
    finally:
        os.close(reached)


def check_directory(path: str) -> None:
    """Refuse a directory if a user other than root can change entries in it or on the path to it.

    Does nothing without root. Raises `LaunchError` (USAGE) and `OSError`.
    """
    if os.geteuid() != 0:
        return
    reached = _walk(path)
    try:
        if not stat.S_ISDIR(os.fstat(reached).st_mode):
            raise _refuse(path, "is not a directory")
    finally:
        os.close(reached)


def _walk(path: str) -> int:
    """A descriptor (O_PATH) of the path's target. Checks each component when it opens it."""
    left = os.path.abspath(path).split("/")[:0:-1]
    opened = [os.open("/", _DIRECTORY)]
    links = 0
    try:
        _judge(opened[-1], "/")
        shown: list[str] = []
        while left:
            name = left.pop()
            if name in {"", "."}:
                continue
            if name == "..":
                if len(opened) > 1:
                    os.close(opened.pop())
                    shown.pop()
                continue
            opened.append(os.open(name, _DIRECTORY, dir_fd=opened[-1]))
            shown.append(name)
            if not stat.S_ISLNK(_judge(opened[-1], "/" + "/".join(shown)).st_mode):
                continue
            target = os.readlink("", dir_fd=opened[-1])
            os.close(opened.pop())
            shown.pop()
            links += 1
            if links > _LINKS_MAX:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            left += target.split("/")[::-1]
            if target.startswith("/"):
                for each in opened[1:]:
                    os.close(each)
                del opened[1:]
                shown.clear()
        return os.dup(opened[-1])
    finally:
        for each in opened:
            os.close(each)


def _judge(descriptor: int, shown: str) -> os.stat_result:
    status = os.fstat(descriptor)
    if status.st_uid != 0:
        raise _refuse(shown, f"belongs to uid {status.st_uid}, which could change what root runs")
    writable = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    is_sticky = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
    if writable and not is_sticky and not stat.S_ISLNK(status.st_mode):
        raise _refuse(shown, "is writable for other users, who could change what root runs")
    return status


def _refuse(path: str, reason: str) -> LaunchError:
    return LaunchError(
        f"{path} {reason}",
        hint=f"find out who changed it; then: chown root:root {path} && chmod go-w {path}",
        status=Exit.USAGE,
    )
