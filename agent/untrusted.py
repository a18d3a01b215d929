# SPDX-License-Identifier: MIT
"""Opens files that another user can write, or can replace. No other code opens such files.

Such a file may be a FIFO without a writer, a link to a file that only root may read, a device, or a file
without an end. Its path may change between two system calls. So this module opens each component of the path
relative to the descriptor of its parent, follows no symbolic link, and checks the file again by its
descriptor.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Container

_PART = 1 << 16
"""Bytes that are read at a time."""
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class UntrustedFileError(OSError):
    """The file exists, but must not be read. ``strerror`` says why; it never quotes the content."""


def open_untrusted(path: Path, *, owners: Container[int] | None = None, below: Path = Path("/")) -> int:
    """Open a regular file for reading. Returns its descriptor; never blocks, follows no symbolic link.

    ``below`` is a directory whose own path is trusted: only root can change it. Links are allowed on the
    way to that directory, and not below it. ``path`` must be below ``below``. ``owners`` are the uids that
    may own the file; None allows all. Raises `UntrustedFileError` for a file that must not be read,
    `FileNotFoundError` and other kinds of `OSError`, and ValueError for a ``path`` not below ``below``.
    """
    directory = open_parent(path, below=below)
    try:
        return _open_in(directory, path, owners)
    finally:
        os.close(directory)


def open_parent(path: Path, *, below: Path = Path("/")) -> int:
    """Open the directory of a file, for `read_in`. Raises as `open_untrusted` does."""
    parts, trusted = path.parts, below.parts  # `Path.relative_to` takes longer than the opens
    if parts[: len(trusted)] != trusted or len(parts) == len(trusted):
        raise ValueError(f"{path} is not below {below}")
    *parents, name = parts[len(trusted) :]
    if ".." in parents or name == "..":
        raise _refuse(path, errno.EINVAL, "the path has a '..' in it")
    here = os.open(below, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    for parent in parents:
        before = here
        try:
            here = os.open(parent, _DIRECTORY, dir_fd=before)
        except OSError as error:
            raise _led_away(path, error) from None
        finally:
            os.close(before)
    return here


def _led_away(path: Path, error: OSError) -> OSError:
    """The error for a link in the place of a directory; any other error as it is."""
    if error.errno in {errno.ELOOP, errno.ENOTDIR}:
        return _refuse(path, errno.ELOOP, "a symbolic link or a file is where a directory must be")
    return error


def _open_in(directory: int, path: Path, owners: Container[int] | None) -> int:
    """Open a regular file in an open directory. Raises as `open_untrusted` does."""
    name = path.name
    try:
        # Check the file type before the open: opening a device can have effects.
        _check(path, os.stat(name, dir_fd=directory, follow_symlinks=False), owners)
        descriptor = os.open(name, _FILE, dir_fd=directory)
    except UntrustedFileError:
        raise
    except OSError as error:
        raise _led_away(path, error) from None
    try:
        _check(path, os.fstat(descriptor), owners)
    except UntrustedFileError:
        os.close(descriptor)
        raise
    return descriptor


def read_untrusted(
    path: Path, *, limit: int, owners: Container[int] | None = None, below: Path = Path("/")
) -> bytes:
    """Read a regular file of at most ``limit`` bytes. Raises as `open_untrusted` does.

    A larger file raises `UntrustedFileError`.
    """
    directory = open_parent(path, below=below)
    try:
        return read_in(directory, path, limit=limit, owners=owners)
    finally:
        os.close(directory)


def read_in(directory: int, path: Path, *, limit: int, owners: Container[int] | None = None) -> bytes:
    """As `read_untrusted`, in the directory that `open_parent` has opened. Faster for many files of one."""
    descriptor = _open_in(directory, path, owners)
    content = b""
    try:
        # os.read: making a file object takes longer than reading most files.
        while len(content) <= limit and (part := os.read(descriptor, min(limit + 1 - len(content), _PART))):
            content += part
    finally:
        os.close(descriptor)
    if len(content) > limit:
        raise _refuse(path, errno.EFBIG, f"it is larger than {limit} bytes")
    return content


def _check(path: Path, status: os.stat_result, owners: Container[int] | None) -> None:
    if stat.S_ISLNK(status.st_mode):
        raise _refuse(path, errno.ELOOP, "it is a symbolic link")
    if not stat.S_ISREG(status.st_mode):
        raise _refuse(path, errno.EINVAL, "it is not a regular file")
    if owners is not None and status.st_uid not in owners:
        raise _refuse(path, errno.EPERM, f"it belongs to uid {status.st_uid}, which must not own it")


def _refuse(path: Path, number: int, reason: str) -> UntrustedFileError:
    return UntrustedFileError(number, reason, os.fspath(path))
