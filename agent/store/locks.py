# SPDX-License-Identifier: MIT
"""Locks between credferry's processes and threads: one file each, locked with flock(2).

The kernel releases a lock when its holder ends. So a crash leaves no lock behind.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from credferry.agent.store.files import store_error

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SEAL_LOCK: Final = "seal.lock"
"""The name of the lock for writing generations."""
# Opening a FIFO must not block, and a symbolic link must not be followed.
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def rollout_lock(vm: str) -> str:
    """The name of the lock for restarts of a VM. Pass it to `Store.lock`."""
    return f"rollout.{vm}.lock"


@contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[bool]:
    """Lock a file, and make it if it is missing. Yields whether this call holds the lock.

    With ``wait`` it waits for the lock, and yields True. Raises `StoreError` where it cannot open the file.
    """
    try:
        descriptor = os.open(path, _FLAGS, 0o600)
    except OSError as error:
        raise store_error(path, error) from None
    try:
        yield _take(descriptor, wait=wait)
    finally:
        os.close(descriptor)


def _take(descriptor: int, *, wait: bool) -> bool:
    """Lock an open file. Returns False where another holds the lock and ``wait`` is False."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True
