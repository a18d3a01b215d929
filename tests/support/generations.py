# SPDX-License-Identifier: MIT
"""Generations of a VM for tests of the store, and a file system that refuses the last sync."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from credferry.agent.sealing.keys import CredentialKey
from credferry.agent.store.generations import Store
from credferry.launcher.handoff import Delivery, Kind, Manifest, ManifestEntry

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import pytest

    from credferry.launcher.handoff import Secret

KEY = CredentialKey(b"k" * 4096)
CANARY = b"canary-0451"


def manifest(number: int, *names: str, vm: str = "web") -> Manifest:
    """A generation's manifest."""
    entries = tuple(ManifestEntry(name, Kind.PLAIN, "0" * 16) for name in names)
    return Manifest(vm, number, f"{number:064x}", "0" * 32, Delivery(), entries)


def unbound(written: Manifest | None) -> Manifest:
    """A manifest of the store's, without what binds it to its values."""
    assert written is not None
    return written.but(key="", credentials=tuple(entry.but(digest="") for entry in written.credentials))


def damage(file: Path) -> None:
    """Have one byte of a file be another, in its place: each name of the file has it then."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    with file.open("r+b") as opened:
        opened.write(content)


def numbers(store: Store) -> set[int]:
    """The generations that are there."""
    return {int(path.name) for path in (store.vm_directory("web") / "generations").iterdir()}


def failing_listing(monkeypatch: pytest.MonkeyPatch, vm: str) -> None:
    """Have the disk fail wherever a VM's generations are listed."""
    plain = Path.iterdir

    def failing(path: Path) -> Iterator[Path]:
        if (path.parent.name, path.name) == (vm, "generations"):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return plain(path)

    monkeypatch.setattr(Path, "iterdir", failing)


def refusing_writes(monkeypatch: pytest.MonkeyPatch, vm: str) -> None:
    """Have one VM's directory be another user's: nothing is made or removed there."""

    def refuse(path: object, *, is_change: bool = True) -> None:
        if is_change and f"/vms/{vm}/" in str(path):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    plain, mkdir, unlink = os.open, Path.mkdir, Path.unlink

    def opened(path: Any, flags: int, *arguments: Any, **named: Any) -> int:  # noqa: ANN401 (as os.open)
        refuse(path, is_change=bool(flags & os.O_CREAT))
        return plain(path, flags, *arguments, **named)

    def made(path: Path, *arguments: Any, **named: Any) -> None:  # noqa: ANN401 (as Path.mkdir)
        refuse(path)
        mkdir(path, *arguments, **named)

    def removed(path: Path, *, missing_ok: bool = False) -> None:
        refuse(path)
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(Path, "mkdir", made)
    monkeypatch.setattr(Path, "unlink", removed)


def failing_sync(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    """Have the kernel refuse to sync one directory, as btrfs does where it is full."""
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if os.path.samestat(os.fstat(descriptor), directory.stat()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


def refusing_renewal(monkeypatch: pytest.MonkeyPatch, vm: str) -> None:
    """Have no room for a VM's generations where they are sealed anew, and for smaller files only."""
    plain = Store.replace

    def replace(store: Store, manifest: Manifest, values: Mapping[str, Secret], **named: bool) -> None:
        if manifest.vm == vm:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        plain(store, manifest, values, **named)

    monkeypatch.setattr(Store, "replace", replace)
