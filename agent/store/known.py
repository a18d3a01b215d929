# SPDX-License-Identifier: MIT
"""What this process knows of generations on disk, so that it need not open unchanged files again.

Each entry holds for the files as they were then. Whoever uses it compares their identities first.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from credferry.agent.store.sealed_files import identity

if TYPE_CHECKING:
    from collections.abc import Callable, Container
    from pathlib import Path

    from credferry.launcher.handoff import Manifest

_Current = tuple[str, tuple[int, ...]]
Files = tuple[tuple[str, int, int, int], ...]


@dataclass(frozen=True, slots=True)
class KnownGenerations:
    """The generations of all VMs below ``state`` that this process has opened or written."""

    state: Path
    _current: dict[str, tuple[_Current | None, Manifest | None]] = field(default_factory=dict)
    """By VM: what ``current`` was when it was opened last, and the manifest there."""
    _digests: dict[str, dict[int, tuple[object, str]]] = field(default_factory=dict)
    """By VM and number: a generation's identity when it was opened, and its digest."""
    _written: dict[str, Files | None] = field(default_factory=dict)
    """By VM: the files of the generation that this process wrote last."""

    def current(self, vm: str, open_it: Callable[[], Manifest | None]) -> Manifest | None:
        """The manifest of a VM's current generation. It is opened if ``current`` is not as it was."""
        seen, known = self._place(vm), self._current.get(vm)
        if known is None or known[0] != seen or seen is None:
            manifest = open_it()
            if manifest is None or _leads_to(seen, manifest.generation):
                self._current[vm] = seen, manifest
            return manifest
        return known[1]

    def give_up(self, vm: str, number: int) -> None:
        """Count a generation as none for as long as ``current`` leads to it."""
        self._note_current(vm, number, None)

    def digest(self, vm: str, number: int, open_it: Callable[[], Manifest | None]) -> str:
        """The digest of a generation; empty for none. It is opened if it is not as it was."""
        seen = identity(f"{self.state}/vms/{vm}/generations/{number}")
        of_vm = self._digests.setdefault(vm, {})
        known = of_vm.get(number)
        if seen is not None and known is not None and known[0] == seen:
            return known[1]
        manifest = open_it() if seen is not None else None
        if manifest is None:
            of_vm.pop(number, None)
            return ""
        of_vm[number] = seen, manifest.digest
        return manifest.digest

    def keep(self, vm: str, numbers: Container[int]) -> None:
        """Forget all generations of a VM but these: the others are gone."""
        of_vm = self._digests.get(vm, {})
        for number in [*of_vm]:
            if number not in numbers:
                of_vm.pop(number, None)  # another thread may have done so

    def note_written(self, manifest: Manifest) -> None:
        """Note a generation that this process has just written, and made current.

        A rollback may have made another one current since.
        """
        self._note_current(manifest.vm, manifest.generation, manifest)
        self.note_files(manifest.vm, manifest.generation)

    def _note_current(self, vm: str, number: int, manifest: Manifest | None) -> None:
        """Note what a generation is, if it is still the current one."""
        seen = self._place(vm)
        if _leads_to(seen, number):
            self._current[vm] = seen, manifest

    def note_files(self, vm: str, number: int) -> None:
        """Note that the files of a generation are now what this process wrote."""
        self._written[vm] = _files(self._generation(vm, number))

    def is_as_written(self, vm: str, number: int) -> bool:
        """Whether no file of a generation has changed since this process wrote it."""
        files = _files(self._generation(vm, number))
        return files is not None and self.is_written(vm, files)

    def is_written(self, vm: str, files: Files) -> bool:
        """Whether these are the files of the generation that this process wrote last."""
        return self._written.get(vm) == files

    def _generation(self, vm: str, number: int) -> str:
        return f"{self.state}/vms/{vm}/generations/{number}"

    def _place(self, vm: str) -> _Current | None:
        """What ``current`` is: the link, and the generation's identity; None if there is none."""
        link = f"{self.state}/vms/{vm}/current"
        try:
            target = os.readlink(link)  # noqa: PTH115 (done for each VM in each cycle)
        except OSError:
            return None
        seen = identity(link)
        return None if seen is None else (target, seen)


def _leads_to(place: _Current | None, number: int) -> bool:
    """Whether ``current`` is a link to a generation of this number."""
    return place is not None and place[0] == f"generations/{number}"


def files_of(directory: str) -> Files:
    """An identity of each file in a generation's directory, in order of their names. Raises OSError.

    It changes when a file is written or replaced.
    """
    found = []
    with os.scandir(directory) as entries:
        for each in entries:
            status = each.stat(follow_symlinks=False)
            found.append((each.name, status.st_ino, status.st_mtime_ns, status.st_ctime_ns))
    return tuple(sorted(found))


def _files(directory: str) -> Files | None:
    """See `files_of`; None where there is no such directory."""
    try:
        return files_of(directory)
    except OSError:
        return None
