# SPDX-License-Identifier: MIT
"""Writing that survives a power failure, and is seen whole or not at all."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def make_directory(path: Path) -> None:
    """Make a directory, mode 0700, with those above it. Raises OSError."""
    missing = [path]
    while not missing[-1].parent.is_dir():
        missing.append(missing[-1].parent)
    for directory in reversed(missing):
        directory.mkdir(0o700, exist_ok=True)
        sync_directory(directory.parent)


def write_durably(path: Path, content: bytes) -> None:
    """Write a new file, mode 0600. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)


def sync_directory(path: Path) -> None:
    """Have a directory's entries survive a power failure. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _beside(path: Path) -> Path:
    """Where what is to replace a path is made: always the same place, or each crash would leave one more."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    return temporary


def point(link: Path, target: str) -> None:
    """Make a symlink lead elsewhere, in one step. Raises OSError."""
    temporary = _beside(link)
    try:
        temporary.symlink_to(target)
        temporary.rename(link)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(link.parent)


def replace_durably(path: Path, content: bytes) -> None:
    """Replace a file's content whole, mode 0600, so that it survives a power failure. Raises OSError.

    The caller keeps others of ours from doing the same at the same time.
    """
    temporary = _beside(path)
    try:
        write_durably(temporary, content)
        temporary.rename(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)
