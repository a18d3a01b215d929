# SPDX-License-Identifier: MIT
"""Generations of sealed credentials per VM: written whole, durable, published by renaming one symlink.

::

    STATE/form                                 the store's form, see `credferry.agent.store.form`
    STATE/seal.lock                            locked while generations are written
    STATE/rollout.VM.lock                      locked while the VM is restarted
    STATE/pause.lock                           locked while a VM takes its turn, see `rollout.pause`
    STATE/tpm.json                             shows whether the TPM is still the same, see `store.at_rest`
    STATE/guest-keys/VM.secret                 master copies of guests' keys
    STATE/vms/VM/current -> generations/7      the path in the unit's LoadCredentialEncrypted=
    STATE/vms/VM/generations/7/manifest        sealed; so is each value.NAME
    STATE/vms/VM/held, STATE/vms/VM/*.json     records, see `credferry.agent.store.record_files`

PID 1 opens ``current`` once for each start of the unit. So a start never mixes two generations.

One job: generations as a whole. What their files hold is in `credferry.agent.store.sealed_files`.
"""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager, suppress
from dataclasses import InitVar, dataclass, field
from typing import TYPE_CHECKING

from credferry.agent.errors import SealError, StoreError
from credferry.agent.store.at_rest import AtRest
from credferry.agent.store.files import UnsyncedError, point, store_error, sync_directory
from credferry.agent.store.known import KnownGenerations
from credferry.agent.store.locks import SEAL_LOCK, locked
from credferry.agent.store.record_files import RecordFiles, written_at
from credferry.agent.store.retention import Retention, generation_numbers
from credferry.agent.store.sealed_files import SealedFiles
from credferry.launcher.handoff import GENERATION_MAX, MANIFEST_FILE, value_file

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Mapping
    from pathlib import Path

    from credferry.agent.sealing.keys import CredentialKey
    from credferry.agent.sealing.policy import OpeningPolicy
    from credferry.launcher.handoff import Manifest, Secret


@dataclass(frozen=True, slots=True)
class Store(RecordFiles):
    """The sealed generations and the records of all VMs below one state directory."""

    at_rest: InitVar[AtRest | None] = None
    sealing: AtRest = field(init=False)
    """How values are sealed. If nothing else is given, with the host's key."""
    _files: SealedFiles = field(init=False)
    _retention: Retention = field(init=False)
    known: KnownGenerations = field(init=False)
    """What this process knows of generations. Their files need not be opened again."""
    of_earlier_key: set[str] = field(default_factory=set)
    """VMs with generations that are still to be sealed with this key: until then they have no way back."""
    _known_ages: dict[str, tuple[int, Mapping[str, float]]] = field(default_factory=dict)
    """By VM: the generation for which ages were read, and the ages."""

    def __post_init__(self, at_rest: AtRest | None) -> None:
        """Make the parts."""
        sealing = AtRest(self.state) if at_rest is None else at_rest
        object.__setattr__(self, "sealing", sealing)
        object.__setattr__(self, "_files", SealedFiles(self.state, self.key, sealing))
        object.__setattr__(self, "_retention", Retention(self._files))
        object.__setattr__(self, "known", KnownGenerations(self.state))

    def current(self, vm: str) -> Manifest | None:
        """The manifest of a VM's current generation; None when no start could use it.

        The result is None for a generation that cannot be opened, that belongs to another VM, or whose files
        do not match its manifest. The agent then seals again.
        """
        directory = self.vm_directory(vm) / "current"
        return self.known.current(vm, lambda: self._files.manifest(vm, directory))

    def generation(self, vm: str, number: int) -> Manifest | None:
        """The manifest of one generation; None where it is missing or cannot be opened."""
        return self._files.manifest(vm, self._generations(vm) / str(number))

    def values(self, vm: str, number: int = 0) -> dict[str, Secret]:
        """The values of one generation of a VM. Number 0 means the current one.

        Raises `StoreError` where the generation cannot be opened or read, or where a value does not match
        its manifest. Raises `SealError` where a value cannot be opened.
        """
        directory = self._generations(vm) / str(number) if number else self.vm_directory(vm) / "current"
        return self._files.values(vm, directory)

    def current_number(self, vm: str) -> int:
        """The number of a VM's current generation, even if that cannot be opened; 0 for none."""
        try:
            name = (self.vm_directory(vm) / "current").readlink().name
        except OSError:
            return 0
        return int(name) if name.isascii() and name.isdigit() else 0

    def sealed_at(self, manifest: Manifest) -> float | None:
        """When a generation was written, in seconds since 1970; None where it is missing."""
        return written_at(self._generations(manifest.vm) / str(manifest.generation))

    def known_ages(self, manifest: Manifest) -> Mapping[str, float]:
        """As `ages`, for the current generation; read once for each generation."""
        known = self._known_ages.get(manifest.vm)
        if known is None or known[0] != manifest.generation:
            known = self._known_ages[manifest.vm] = manifest.generation, self.ages(manifest.vm)
        return known[1]

    def numbers(self, vm: str) -> list[int]:
        """The numbers of all generations that are there, whole or not, in any order. Raises `StoreError`."""
        return generation_numbers(self._generations(vm))

    def next_number(self, vm: str) -> int:
        """The number of the VM's next generation. No earlier one had it: no pruning removes the newest.

        The directory of the current one may be gone, by hand. Its number is in the link. Raises
        `StoreError`.
        """
        current = self.current_number(vm)
        return max(*self.numbers(vm), current if current < GENERATION_MAX else 0, 0) + 1

    def write(
        self, manifest: Manifest, values: Mapping[str, Secret], keep: Container[int] | None = ()
    ) -> None:
        """Write a generation and publish it. When this returns, the generation survives a power failure.

        Then older generations are removed, as `prune` does. With None for ``keep`` they stay, and the caller
        prunes later.
        Raises `UnsyncedStoreError` where the new generation is current, but a power failure may undo that.
        Raises `StoreError` or `SealError` where the generation before it is still current. The files of the
        new generation are then removed.
        """
        directory = self.vm_directory(manifest.vm)
        generation = self._generations(manifest.vm) / str(manifest.generation)
        try:
            self._make(generation.parent)
            generation.mkdir(0o700)
        except OSError as error:
            raise store_error(generation, error) from None
        try:
            bound = self._files.seal(generation, manifest, values, self._reusable(manifest.vm))
            sync_directory(generation.parent)
            point(directory / "current", f"generations/{manifest.generation}")
        except UnsyncedError as error:
            # ``current`` already names it. If it were removed, the next start of the VM would find nothing.
            raise store_error(generation, error) from None
        except (OSError, SealError) as error:
            shutil.rmtree(generation, ignore_errors=True)
            if isinstance(error, SealError):
                raise
            raise store_error(generation, error) from None
        self.known.note_written(bound)
        if keep is not None:
            with suppress(StoreError):  # it is written all the same
                self.prune(manifest.vm, manifest.generation, keep)

    def _reusable(self, vm: str) -> Path | None:
        """The directory of the current generation, whose sealed files another one can have as well.

        Values that a TPM sealed are not used again: what it asks of the host may differ by now.
        """
        number = self.current_number(vm)
        return self._generations(vm) / str(number) if number and self.sealing.options is None else None

    def prune(self, vm: str, current: int, keep: Container[int]) -> None:
        """Remove the generations that no rollback needs.

        The store keeps the newest whole generations (`retention.KEEP`, with the current one), as many newer
        ones after a rollback, and those in ``keep``. Raises `StoreError`.
        """
        is_as_written = self.known.is_as_written(vm, current)
        self.known.keep(vm, self._retention.prune(self._generations(vm), current, keep))
        if is_as_written:  # one link less to a file changes its ctime
            self.known.note_files(vm, current)

    def replace(
        self, manifest: Manifest, values: Mapping[str, Secret], *, only_values: bool = False
    ) -> None:
        """Replace a generation's files with the same values, sealed anew. Raises OSError and `SealError`.

        The manifest comes last: until then it is the old one. With ``only_values``, it stays.
        """
        directory = self.vm_directory(manifest.vm)
        generation, made = self._generations(manifest.vm) / str(manifest.generation), directory / "renewed"
        shutil.rmtree(made, ignore_errors=True)
        # Make the files outside the generation: PID 1 opens all files in it, and may do so now.
        made.mkdir(0o700)
        try:
            if only_values:
                self._files.seal_values(made, values)
            else:
                self._files.seal(made, manifest, values)
            written = generation.stat()
            for name in (*map(value_file, values), *(() if only_values else (MANIFEST_FILE,))):
                (made / name).rename(generation / name)
            os.utime(generation, ns=(written.st_atime_ns, written.st_mtime_ns))  # it is not newer
            sync_directory(generation)
        finally:
            shutil.rmtree(made, ignore_errors=True)

    def with_key(self, key: CredentialKey) -> Store:
        """The same store, opened with another key of the host."""
        return Store(self.state, key, at_rest=self.sealing)

    def policies(self, vm: str, number: int) -> set[OpeningPolicy | None]:
        """What the values of a generation are sealed with; empty where it is no generation."""
        manifest, directory = self.generation(vm, number), self._generations(vm) / str(number)
        try:
            return self._files.policies(manifest, directory) if manifest is not None else set()
        except OSError:
            return set()

    def give_up(self, vm: str, number: int) -> None:
        """Count a generation as none for as long as ``current`` leads to it: its values do not open."""
        self.known.give_up(vm, number)

    def revert(self, vm: str, number: int) -> Manifest | None:
        """Make an older generation current again. Returns its manifest; None where not all of it opens.

        Raises `StoreError` where ``current`` cannot be changed.
        """
        directory = self.vm_directory(vm)
        manifest = self.generation(vm, number)
        if manifest is not None and self.opens(vm, number):
            try:
                point(directory / "current", f"generations/{number}")
            except OSError as error:
                raise store_error(directory / "current", error) from None
            return manifest
        return None

    def opens(self, vm: str, number: int) -> bool:
        """Whether all values of a generation open. One damaged file may be that of several generations."""
        try:
            self.values(vm, number)
        except (StoreError, SealError):
            return False
        return True

    def previous(self, vm: str) -> Manifest | None:
        """The generation before the current one, with another digest; None for none. Raises `StoreError`.

        That is the one that the VM last ran well. Where none is noted, it is the newest. A newer one than
        the current one is never before it: the VM was rolled back from that.
        """
        current = self.current(vm)
        if current is None:
            return None
        worked = [self.find(vm, each.digest, each.generation) for each in reversed(self.worked(vm))]
        older = (
            self.generation(vm, number)
            for number in (*worked, *sorted(self.numbers(vm), reverse=True))
            if 0 < number < current.generation
        )
        return next((each for each in older if each is not None and each.digest != current.digest), None)

    def find(self, vm: str, digest: str, number: int) -> int:
        """The number of a generation with this digest, for a rollback; 0 for none.

        The result is ``number`` if that generation has the digest, else the newest one that has it. A
        generation that was sealed again has another number. Raises `StoreError`.
        """
        if number and self._digest(vm, number) == digest:
            return number
        for each in sorted(self.numbers(vm), reverse=True):
            if self._digest(vm, each) == digest:
                return each
        return 0

    def _digest(self, vm: str, number: int) -> str:
        """The digest of a generation; empty where it cannot be opened."""
        return self.known.digest(vm, number, lambda: self.generation(vm, number))

    @contextmanager
    def lock(self, name: str = SEAL_LOCK, *, wait: bool = True) -> Iterator[bool]:
        """Lock a file against other credferry processes and threads. Raises `StoreError`.

        Yields whether this call holds the lock. With ``wait`` it waits for the lock, and yields True.
        """
        path = self.state / name
        try:
            self._make(self.state)
        except OSError as error:
            raise store_error(path, error) from None
        with locked(path, wait=wait) as is_held:
            yield is_held

    def _generations(self, vm: str) -> Path:
        """The directory of a VM's generations."""
        return self.vm_directory(vm) / "generations"
