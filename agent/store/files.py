# SPDX-License-Identifier: MIT
"""Writes that survive a power failure. A reader sees the whole change or none of it."""

from __future__ import annotations

import fcntl
import os
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import TYPE_CHECKING

from credferry.agent.errors import StoreError, UnsyncedStoreError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

_OPEN_MAX = 64


class UnsyncedError(OSError):
    """The change is in place, but a power failure may undo it: the last sync failed."""


def make_directory(path: Path) -> None:
    """Make a directory and its missing parents, mode 0700, durably. Raises OSError."""
    missing = [path]
    while not missing[-1].parent.is_dir():
        missing.append(missing[-1].parent)
    for directory in reversed(missing):
        directory.mkdir(0o700, exist_ok=True)
        sync_directory(directory.parent)


def write_all_durably(directory: Path, contents: Iterable[tuple[str, bytes]]) -> None:
    """Write new files into a directory, mode 0600, and sync them and the directory. Raises OSError.

    Up to `_OPEN_MAX` files are written before the first of them is synced. A file system with a journal then
    commits a few times, not once per file.
    """
    for batch in _batches(contents):
        with ExitStack() as stack:
            descriptors = [_write_new(stack, directory / name, content) for name, content in batch]
            for descriptor in descriptors:
                os.fsync(descriptor)
    sync_directory(directory)


def _batches(contents: Iterable[tuple[str, bytes]]) -> Iterator[list[tuple[str, bytes]]]:
    """Split into groups of `_OPEN_MAX`, because each file needs an open descriptor."""
    left = iter(contents)
    while batch := list(islice(left, _OPEN_MAX)):
        yield batch


def _write_new(stack: ExitStack, path: Path, content: bytes) -> int:
    """Write a new file. Returns its descriptor, which the stack closes."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    stack.callback(os.close, descriptor)
    left = memoryview(content)
    while left:
        left = left[os.write(descriptor, left) :]
    return descriptor


def sync_directory(path: Path) -> None:
    """Make a directory's entries survive a power failure. Raises OSError."""
    with _opened(path) as descriptor:
        os.fsync(descriptor)


@contextmanager
def _opened(directory: Path) -> Iterator[int]:
    """Open a directory before a rename in it, so that the sync after the rename needs no open."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _locked(directory: Path) -> Iterator[int]:
    """Open a directory, and lock it against others that replace something in it.

    Nothing else is locked or waited for meanwhile. So this is safe whatever the caller holds.
    """
    with _opened(directory) as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor


def _sync_last(directory: int) -> None:
    """Sync a directory after a rename in it. Raises `UnsyncedError`."""
    try:
        os.fsync(directory)
    except OSError as error:
        raise UnsyncedError(error.errno, error.strerror) from None


def _beside(path: Path) -> Path:
    """The temporary path for a replacement: always the same, so that crashes do not leave more and more.

    The caller has locked the directory, so nobody else uses it.
    """
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    return temporary


def point(link: Path, target: str) -> None:
    """Make a symlink point to another target, in one step. Any thread and process may do so at any time.

    Raises `UnsyncedError` where it points to the new target, but a power failure may undo that. Raises any
    other OSError where it does not point there.
    """
    with _locked(link.parent) as directory:
        temporary = _beside(link)
        try:
            temporary.symlink_to(target)
            temporary.rename(link)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        _sync_last(directory)


def replace_durably(path: Path, content: bytes) -> None:
    """Replace a file's content whole, mode 0600, so that it survives a power failure.

    Any thread and process may do so at any time. Raises `UnsyncedError` where the file has the new content,
    but a power failure may undo that. Raises any other OSError where it does not have the new content.
    """
    with _locked(path.parent) as directory:
        temporary = _beside(path)
        try:
            with ExitStack() as stack:
                os.fsync(_write_new(stack, temporary, content))
            temporary.rename(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        _sync_last(directory)


def store_error(path: Path, error: OSError) -> StoreError:
    """The error for callers of the store: it names the file, the cause and the remedy."""
    if isinstance(error, UnsyncedError):
        return UnsyncedStoreError(
            f"{path}: written, but not safely on disk, so a power failure may lose it: "
            f"{os.strerror(error.errno or 0)}",
            hint="check the file system of the state directory",
        )
    return StoreError(
        f"{path}: {error.strerror or os.strerror(error.errno or 0)}",
        hint="the store must be on a writable file system with room; run as its owner or root",
    )
