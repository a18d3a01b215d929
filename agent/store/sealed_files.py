# SPDX-License-Identifier: MIT
"""The sealed files of a generation: its manifest, and one file for each value.

The manifest names the VM, the generation and the values, and binds the values to itself. So a directory in
which a file is missing, is left over, or comes from somewhere else counts as no generation.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from credferry.agent.errors import SealError, StoreError
from credferry.agent.sealing.credential import SEALED_MAX, seal, unseal
from credferry.agent.sealing.policy import policy_of
from credferry.agent.store.files import store_error, write_all_durably
from credferry.agent.untrusted import open_parent, read_in, read_untrusted
from credferry.launcher.handoff import (
    MANIFEST_FILE,
    HandoffError,
    Manifest,
    ManifestEntry,
    Secret,
    unit_credential,
    value_file,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from credferry.agent.sealing.keys import CredentialKey
    from credferry.agent.sealing.policy import OpeningPolicy
    from credferry.agent.store.at_rest import AtRest

SEALED_FILE_MAX = 2 * SEALED_MAX
"""Limit for one sealed file, in bytes. Base64 in lines takes less than twice the size of its content."""


@dataclass(frozen=True, slots=True)
class SealedFiles:
    """Seals and opens the files of generations below one state directory.

    Each ``directory`` is a generation's own directory, or the link ``current`` to it.
    """

    state: Path
    key: CredentialKey
    at_rest: AtRest

    def seal(
        self,
        directory: Path,
        manifest: Manifest,
        values: Mapping[str, Secret],
        before: Path | None = None,
    ) -> Manifest:
        """Seal a generation's files into its directory, the manifest first. They survive a power failure.

        If a sealed file in the directory ``before`` opens to the same value, it gets another hard link, and
        nothing is sealed. Returns the manifest, bound to the values.

        The manifest's key binds it to the values; a manifest without a key gets a random one. Raises OSError
        and `SealError`.
        """
        bound = manifest.bound(values, manifest.key or os.urandom(32).hex())
        text = seal(bound.to_bytes(), name=unit_credential(MANIFEST_FILE), key=self.key)
        new = values if before is None else self._left(before, directory, values)
        write_all_durably(directory, chain([(MANIFEST_FILE, text)], self._sealed(new)))
        return bound

    def _left(self, before: Path, directory: Path, values: Mapping[str, Secret]) -> dict[str, Secret]:
        """Link what an earlier generation has as well. Returns the values that are still to be sealed.

        A sealed file depends on the name and value of the credential only. The new manifest binds the value
        to its generation.
        """
        try:
            descriptor = open_parent(before / MANIFEST_FILE, below=self.state)
        except OSError:
            return dict(values)
        try:
            return {
                name: value
                for name, value in values.items()
                if not self._is_linked(descriptor, before / value_file(name), directory, value)
            }
        finally:
            os.close(descriptor)

    def _is_linked(self, before: int, path: Path, directory: Path, value: Secret) -> bool:
        """Whether an earlier sealed file could be linked, because it opens to the same value."""
        try:
            blob = read_in(before, path, limit=SEALED_FILE_MAX)
            if self.at_rest.unseal(blob, name=unit_credential(path.name), key=self.key) != value.reveal():
                return False
            os.link(path.name, directory / path.name, src_dir_fd=before, follow_symlinks=False)
        except (OSError, SealError):  # it does not open, or the file system has no hard links
            return False
        return True

    def seal_values(self, directory: Path, values: Mapping[str, Secret]) -> None:
        """Seal values into a directory, without a manifest. Raises as `seal` does."""
        write_all_durably(directory, self._sealed(values))

    def _sealed(self, values: Mapping[str, Secret]) -> Iterator[tuple[str, bytes]]:
        for name, value in values.items():
            file = value_file(name)
            yield file, self.at_rest.seal(value.reveal(), name=unit_credential(file), key=self.key)

    def policies(self, manifest: Manifest, directory: Path) -> set[OpeningPolicy | None]:
        """What the values of a generation are sealed with. Opens none of them. Raises OSError."""
        return {policy_of(self._read(directory / value_file(entry.name))) for entry in manifest.credentials}

    def manifest(self, vm: str, directory: Path) -> Manifest | None:
        """The manifest of a generation; None when no start of the VM could use the generation.

        The result is None for a generation that cannot be opened, that belongs to another VM, or whose files
        do not match its manifest.
        """
        try:
            directory = _without_link(directory)
            manifest = self._read_manifest(directory)
            files = {path.name for path in directory.iterdir()}
            number = directory.name
        except (OSError, SealError, HandoffError):
            return None
        expected = {MANIFEST_FILE, *(value_file(entry.name) for entry in manifest.credentials)}
        is_own = manifest.vm == vm and str(manifest.generation) == number
        return manifest if is_own and files == expected else None

    def values(self, vm: str, directory: Path) -> dict[str, Secret]:
        """The values of a generation.

        Raises `StoreError` where the generation cannot be opened or read, or where a value does not match
        its manifest. Raises `SealError` where a value cannot be opened.
        """
        manifest = self.manifest(vm, directory)
        if manifest is None:
            raise StoreError(
                f"{directory}: there is no generation here that can be opened",
                hint="see: credferry doctor; the agent seals again when a secret changes",
            )
        try:
            directory = _without_link(directory)
            return {entry.name: self._value(directory, manifest, entry) for entry in manifest.credentials}
        except OSError as error:
            raise store_error(directory, error) from None

    def is_half_written(self, directory: Path) -> bool:
        """Whether a file of a generation is missing or empty. False where it cannot be opened otherwise."""
        try:
            sizes = {path.name: path.stat().st_size for path in directory.iterdir()}
            if not sizes.get(MANIFEST_FILE) or not all(sizes.values()):
                return True
            manifest = self._read_manifest(directory)
        except (OSError, SealError, HandoffError):
            return False
        return not {value_file(entry.name) for entry in manifest.credentials} <= sizes.keys()

    def _read_manifest(self, directory: Path) -> Manifest:
        """A manifest that is not checked against its place. Raises OSError, `SealError`, `HandoffError`."""
        blob = self._read(directory / MANIFEST_FILE)
        return Manifest.from_bytes(unseal(blob, name=unit_credential(MANIFEST_FILE), key=self.key))

    def _value(self, directory: Path, manifest: Manifest, entry: ManifestEntry) -> Secret:
        file = value_file(entry.name)
        blob = self._read(directory / file)
        value = Secret(self.at_rest.unseal(blob, name=unit_credential(file), key=self.key))
        if not manifest.holds(entry, value):
            raise StoreError(
                f"{directory / file}: this is not the value that was sealed for generation "
                f"{manifest.generation} of VM {manifest.vm}",
                hint="find out who could write there; remove this generation, and the agent seals it again",
            )
        return value

    def _read(self, path: Path) -> bytes:
        """Read a sealed file. Root's verbs call this too; the agent's user can put anything there."""
        return read_untrusted(path, limit=SEALED_FILE_MAX, below=self.state)


def identity(directory: str) -> tuple[int, ...] | None:
    """An identity that changes when a generation's manifest or its list of files changes; None for none.

    To compare identities is a hundred times faster than to open the manifest.
    """
    try:
        parts = [os.stat(path) for path in (directory, f"{directory}/{MANIFEST_FILE}")]  # noqa: PTH116 (done for each VM in each cycle)
    except OSError:
        return None
    return tuple(
        number for part in parts for number in (part.st_dev, part.st_ino, part.st_mtime_ns, part.st_ctime_ns)
    )


def _without_link(directory: Path) -> Path:
    """Resolve ``current`` to the generation's own directory. Raises OSError where it leads elsewhere."""
    if directory.name != "current":
        return directory
    target = directory.readlink()
    if target.parent != Path("generations") or not target.name.isascii() or not target.name.isdigit():
        raise NotADirectoryError(
            errno.ENOTDIR, "this is not a link to a generation of the VM", str(directory)
        )
    return directory.parent / target
