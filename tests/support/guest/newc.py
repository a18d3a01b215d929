# SPDX-License-Identifier: MIT
"""cpio archives in the "newc" form that Linux unpacks as an initramfs.

The form is that of the kernel's Documentation/driver-api/early-userspace/buffer-format.rst. Everything
belongs to root, and times are zero, so that the same input gives the same bytes.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ALIGNMENT = 4
"""An archive behind another one must begin at a multiple of this, or the kernel sees "invalid magic"."""

_TRAILER = "TRAILER!!!"


@dataclass(frozen=True, slots=True)
class Entry:
    """One name in an archive, without a leading slash; ``mode`` includes the file's type."""

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def directory(name: str, permissions: int = 0o755) -> Entry:
    """A directory."""
    return Entry(name, stat.S_IFDIR | permissions)


def file(name: str, data: bytes, permissions: int = 0o644) -> Entry:
    """A regular file."""
    return Entry(name, stat.S_IFREG | permissions, data)


def link(name: str, target: str) -> Entry:
    """A symbolic link."""
    return Entry(name, stat.S_IFLNK | 0o777, target.encode())


def character_device(name: str, major: int, minor: int, permissions: int = 0o600) -> Entry:
    """A character device's node."""
    return Entry(name, stat.S_IFCHR | permissions, device=(major, minor))


def archive(entries: Iterable[Entry]) -> Iterator[bytes]:
    """The archive, piece by piece. Parents must come before what is in them."""
    for number, entry in enumerate(entries, start=1):
        yield _header(entry, number)
        yield _padded(entry.data)
    yield _header(Entry(_TRAILER, 0), 0)


def padding(size: int) -> bytes:
    """Zeros that bring a file of this size to the next alignment."""
    return bytes(-size % ALIGNMENT)


def _header(entry: Entry, inode: int) -> bytes:
    name = entry.name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    major, minor = entry.device
    numbers = (inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, major, minor, len(name), 0)
    return _padded(b"070701" + b"".join(b"%08X" % number for number in numbers) + name)


def _padded(data: bytes) -> bytes:
    return data + padding(len(data))
