# SPDX-License-Identifier: MIT
"""How records of VMs are read and written: one JSON file for each VM and record."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import msgspec

from credferry.agent.errors import StoreError
from credferry.agent.store.files import make_directory, replace_durably, store_error
from credferry.agent.untrusted import read_untrusted

if TYPE_CHECKING:
    from pathlib import Path

RECORD_MAX = 1 << 20
"""Limit for one record, in bytes."""

_T = TypeVar("_T", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class RecordAccess:
    """Files below ``STATE/vms/VM``. To `_load`, a record that cannot be read is missing."""

    state: Path
    _places: dict[str, Path] = field(default_factory=dict, init=False)
    """By VM: `vm_directory`. To make a path takes longer than most system calls."""
    _made: set[Path] = field(default_factory=set, init=False)
    """Directories that are known to survive a power failure."""

    def vm_directory(self, vm: str) -> Path:
        """The directory of one VM's generations and records."""
        place = self._places.get(vm)
        if place is None:
            place = self._places[vm] = self.state / "vms" / vm
        return place

    def _load(self, vm: str, name: str, kind: type[_T]) -> _T | None:
        # Most VMs have no such file. This check is faster than one exception for each VM.
        if not os.access(f"{self.state}/vms/{vm}/{name}", os.F_OK):
            return None
        try:
            return self._load_surely(vm, name, kind)
        except StoreError:
            return None

    def _load_surely(self, vm: str, name: str, kind: type[_T]) -> _T | None:
        """As `_load`, but None means missing. Raises `StoreError` for a record that cannot be read."""
        path = self.vm_directory(vm) / name
        try:
            return msgspec.json.decode(self._read(path), type=kind)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise store_error(path, error) from None
        except (ValueError, RecursionError):
            # msgspec raises DecodeError, or lets a UnicodeDecodeError through. Both are ValueErrors.
            raise StoreError(f"{path}: not a record", hint="remove the file") from None

    def _write(self, vm: str, name: str, record: msgspec.Struct | None) -> None:
        """Write a record or, with None, remove it. Raises `StoreError`."""
        if record is not None:
            self._save(vm, name, record)
            return
        path = self.vm_directory(vm) / name
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise store_error(path, error) from None

    def _save(self, vm: str, name: str, record: msgspec.Struct) -> None:
        path = self.vm_directory(vm) / name
        try:
            self._make(path.parent)
            replace_durably(path, msgspec.json.encode(record))
        except OSError as error:
            raise store_error(path, error) from None

    def _note(self, vm: str, name: str, data: bytes) -> None:
        """Replace a file of a VM that has a directory. A power failure may undo it. Raises OSError."""
        path = self.vm_directory(vm) / name
        made = path.with_name(f".{name}.new")
        made.write_bytes(data)
        made.rename(path)

    def _read(self, path: Path) -> bytes:
        """Read a record. Root's verbs call this too; the agent's user can put anything there."""
        return read_untrusted(path, limit=RECORD_MAX, below=self.state)

    def _make(self, directory: Path) -> None:
        """Make a directory, if it is missing, so that it survives a power failure. Raises OSError."""
        # Sync the parent once only: a sync may wait for everything that other processes have written.
        if directory not in self._made or not directory.is_dir():
            make_directory(directory)
            self._made.add(directory)
