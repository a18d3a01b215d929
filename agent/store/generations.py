# SPDX-License-Identifier: MIT
"""Generations of sealed credentials per VM: written whole, durable, published by renaming one symlink.

::

    STATE/form                                 the store's form, see `credferry.agent.store.form`
    STATE/seal.lock                            locked while generations are written
    STATE/rollout.VM.lock                      locked while the VM is restarted
    STATE/guest-keys/VM.secret                 master copies of guests' keys
    STATE/vms/VM/current -> generations/7      the path in the unit's LoadCredentialEncrypted=
    STATE/vms/VM/generations/7/manifest        sealed; so is each value.NAME
    STATE/vms/VM/{assumed,rollout}.json        what the running VM is assumed to run; its last rollout
    STATE/vms/VM/renewed.json                  digests of earlier host keys, with the present key
    STATE/vms/VM/restarts.json                 the moments of the last restarts
    STATE/vms/VM/reported.json                 the launcher's first report of the last start
    STATE/vms/VM/held                          exists while an operator holds the VM

PID 1 opens ``current`` once for each start of the unit. So a start never mixes two generations.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from credferry.agent.errors import SealError, StoreError, UnsyncedStoreError
from credferry.agent.sealing.credential import SEALED_MAX, seal, unseal
from credferry.agent.store.files import (
    UnsyncedError,
    make_directory,
    point,
    replace_durably,
    sync_directory,
    write_all_durably,
)
from credferry.agent.store.records import Assumed, Attempt, Renewed, Restarts
from credferry.agent.untrusted import read_untrusted
from credferry.launcher.handoff import (
    GENERATION_MAX,
    MANIFEST_FILE,
    HandoffError,
    Manifest,
    ManifestEntry,
    Secret,
    Stamp,
    unit_credential,
    value_file,
)

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Mapping

    from credferry.agent.sealing.keys import CredentialKey

SEALED_FILE_MAX = 2 * SEALED_MAX
"""Limit for one sealed file, in bytes. Base64 in lines takes less than twice the size of its content."""
RECORD_MAX = 1 << 20
"""Limit for one small record beside the generations, in bytes."""
# Opening a FIFO must not block, and a symbolic link must not be followed.
_LOCK_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
KEEP = 3
"""Generations kept for each VM, the current one included."""


_T = TypeVar("_T", Assumed, Attempt, Renewed, Restarts)


def rollout_lock(vm: str) -> str:
    """The name of the lock for restarts of a VM. Pass it to `Store.lock`."""
    return f"rollout.{vm}.lock"


@dataclass(frozen=True, slots=True)
class Store:
    """The sealed generations below one state directory. Its directories have mode 0700."""

    state: Path
    key: CredentialKey
    _opened: dict[str, tuple[tuple[int, ...] | None, Manifest | None]] = field(default_factory=dict)
    """By VM: the manifest that was opened last, and the identity of its files at that time (`_identity`)."""
    _reported: dict[str, str] = field(default_factory=dict)
    """By VM: the invocation whose report is noted."""
    _renewed: dict[str, Mapping[str, str]] = field(default_factory=dict)
    """By VM: see `renewed`."""
    _whole: dict[str, set[int]] = field(default_factory=dict)
    """By VM: generations that are known to be whole. Opening all of them at each sealing would be slow."""
    _made: set[Path] = field(default_factory=set)
    """Directories that are known to survive a power failure."""

    def vm_directory(self, vm: str) -> Path:
        """The directory of one VM's generations and records."""
        return self.state / "vms" / vm

    def current(self, vm: str) -> Manifest | None:
        """The manifest of a VM's current generation; None when no start could use it.

        The result is None for a generation that cannot be opened, that belongs to another VM, or whose files
        do not match its manifest. The agent then seals again.
        """
        return self._manifest(vm, f"{self.state}/vms/{vm}/current")

    def _manifest(self, vm: str, directory: str) -> Manifest | None:
        # To compare identities is a hundred times faster than to open the manifest.
        seen = _identity(directory)
        known = self._opened.get(vm)
        if known is None or known[0] != seen or seen is None:
            known = self._opened[vm] = (seen, self._open_manifest(vm, Path(directory)))
        return known[1]

    def _open_manifest(self, vm: str, directory: Path) -> Manifest | None:
        try:
            directory = self._without_link(directory)
            manifest = self._read_manifest(directory)
            files = {path.name for path in directory.iterdir()}
            number = directory.name
        except (OSError, SealError, HandoffError):
            return None
        expected = {MANIFEST_FILE, *(value_file(entry.name) for entry in manifest.credentials)}
        is_own = manifest.vm == vm and str(manifest.generation) == number
        return manifest if is_own and files == expected else None

    def _read_manifest(self, directory: Path) -> Manifest:
        """A manifest that is not checked against its place. Raises OSError, `SealError`, `HandoffError`."""
        blob = self._read(directory / MANIFEST_FILE, SEALED_FILE_MAX)
        return Manifest.from_bytes(unseal(blob, name=unit_credential(MANIFEST_FILE), key=self.key))

    def generation(self, vm: str, number: int) -> Manifest | None:
        """The manifest of one generation; None where it is missing or cannot be opened."""
        return self._open_manifest(vm, self.vm_directory(vm) / "generations" / str(number))

    def current_number(self, vm: str) -> int:
        """The number of a VM's current generation, even if that cannot be opened; 0 for none."""
        try:
            name = (self.vm_directory(vm) / "current").readlink().name
        except OSError:
            return 0
        return int(name) if name.isascii() and name.isdigit() else 0

    def sealed_at(self, manifest: Manifest) -> float | None:
        """When a generation was written, in seconds since 1970; None where it is missing."""
        return _written_at(self.vm_directory(manifest.vm) / "generations" / str(manifest.generation))

    def values(self, vm: str, number: int = 0) -> dict[str, Secret]:
        """The values of one generation of a VM. Number 0 means the current one.

        Raises `StoreError` where the generation cannot be opened or read, or where a value does not match
        its manifest. Raises `SealError` where a value cannot be opened.
        """
        directory = self.vm_directory(vm) / (f"generations/{number}" if number else "current")
        manifest = self._open_manifest(vm, directory)
        if manifest is None:
            raise StoreError(
                f"{directory}: there is no generation that can be opened",
                hint="see: credferry doctor; the next change of a secret is sealed anew",
            )
        try:
            directory = self._without_link(directory)
            return {entry.name: self._value(directory, manifest, entry) for entry in manifest.credentials}
        except OSError as error:
            raise _failed(directory, error) from None

    def _value(self, directory: Path, manifest: Manifest, entry: ManifestEntry) -> Secret:
        file = value_file(entry.name)
        blob = self._read(directory / file, SEALED_FILE_MAX)
        value = Secret(unseal(blob, name=unit_credential(file), key=self.key))
        if not manifest.holds(entry, value):
            raise StoreError(
                f"{directory / file}: it is not the value that was sealed for generation "
                f"{manifest.generation} of VM {manifest.vm}",
                hint="see who could write there; remove that generation, and it is sealed anew",
            )
        return value

    def next_number(self, vm: str) -> int:
        """The number of the VM's next generation: one more than the highest number that is there."""
        return max(self.numbers(vm), default=0) + 1

    def write(self, manifest: Manifest, values: Mapping[str, Secret], keep: Container[int] = ()) -> None:
        """Write a generation and publish it. When this returns, the generation survives a power failure.

        For a rollback, the store keeps the newest whole generations (`KEEP`, with the new one) and those
        in ``keep``. It removes all others.
        Raises `UnsyncedStoreError` where the new generation is current, but a power failure may undo that.
        Raises `StoreError` or `SealError` where the generation before it is still current. The files of the
        new generation are then removed.
        """
        directory = self.vm_directory(manifest.vm)
        generation = directory / "generations" / str(manifest.generation)
        try:
            self._make(generation.parent)
            generation.mkdir(0o700)
        except OSError as error:
            raise _failed(generation, error) from None
        try:
            self.seal_files(generation, manifest, values)
            sync_directory(generation.parent)
            point(directory / "current", f"generations/{manifest.generation}")
        except UnsyncedError as error:
            # ``current`` already names it. If it were removed, the next start of the VM would find nothing.
            raise _failed(generation, error) from None
        except (OSError, SealError) as error:
            shutil.rmtree(generation, ignore_errors=True)
            if isinstance(error, SealError):
                raise
            raise _failed(generation, error) from None
        self._whole.setdefault(manifest.vm, set()).add(manifest.generation)
        self._prune(manifest.vm, manifest.generation, keep)

    def seal_files(self, directory: Path, manifest: Manifest, values: Mapping[str, Secret]) -> None:
        """Seal a generation's files into a directory, the manifest first. They survive a power failure.

        A new random key binds the manifest to the values. Raises OSError and `SealError`.
        """
        bound = manifest.bound(values, secrets.token_hex(32))
        contents = {MANIFEST_FILE: Secret(bound.to_bytes())}
        contents |= {value_file(name): value for name, value in values.items()}
        write_all_durably(
            directory,
            (
                (name, seal(content.reveal(), name=unit_credential(name), key=self.key))
                for name, content in contents.items()
            ),
        )

    def revert(self, vm: str, number: int) -> Manifest | None:
        """Make an older generation current again. Returns its manifest; None where it cannot be opened.

        Raises `StoreError` where ``current`` cannot be changed.
        """
        directory = self.vm_directory(vm)
        manifest = self.generation(vm, number)
        if manifest is not None:
            try:
                point(directory / "current", f"generations/{number}")
            except OSError as error:
                raise _failed(directory / "current", error) from None
        return manifest

    def previous(self, vm: str) -> Manifest | None:
        """The newest generation before the current one with another digest; None for none."""
        current = self.current(vm)
        if current is None:
            return None
        older = (
            self.generation(vm, number)
            for number in sorted(self.numbers(vm), reverse=True)
            if number < current.generation
        )
        return next((each for each in older if each is not None and each.digest != current.digest), None)

    def find(self, vm: str, digest: str, number: int) -> int:
        """The number of a generation with this digest, for a rollback; 0 for none.

        The result is ``number`` if that generation has the digest, else the newest one that has it. A
        generation that was sealed again has another number.
        """
        for each in (number, *sorted(self.numbers(vm), reverse=True)):
            manifest = self.generation(vm, each) if each else None
            if manifest is not None and manifest.digest == digest:
                return each
        return 0

    def is_held(self, vm: str) -> bool:
        """Whether an operator holds the VM."""
        return os.access(f"{self.state}/vms/{vm}/held", os.F_OK)  # raises no exception; called in each cycle

    def hold(self, vm: str, *, held: bool) -> None:
        """Hold a VM or, with False, release it. A hold survives a reboot. Raises `StoreError`."""
        path = self.vm_directory(vm) / "held"
        try:
            if held:
                self._make(path.parent)
                replace_durably(path, b"")
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise _failed(path, error) from None

    def held_at(self, vm: str) -> float | None:
        """When an operator put the VM on hold, in seconds since 1970; None where it is not held."""
        return _written_at(self.vm_directory(vm) / "held")

    def attempted_at(self, vm: str) -> float | None:
        """When `attempt` was last written, in seconds since 1970; None where there is none."""
        return _written_at(self.vm_directory(vm) / "rollout.json")

    def assumed(self, vm: str) -> Assumed | None:
        """What an invocation of the VM without evidence is assumed to run; None where nothing is noted."""
        noted = self._load(vm, "assumed.json", Assumed)
        return noted and msgspec.structs.replace(noted, digest=self.in_present_terms(vm, noted.digest))

    def assume(self, vm: str, assumed: Assumed) -> None:
        """Write what `assumed` returns. Raises `StoreError`."""
        self._save(vm, "assumed.json", assumed)

    def attempt(self, vm: str) -> Attempt | None:
        """The VM's last rollout, where it has not succeeded; else None."""
        noted = self._load(vm, "rollout.json", Attempt)
        return noted and msgspec.structs.replace(noted, digest=self.in_present_terms(vm, noted.digest))

    def record_attempt(self, vm: str, attempt: Attempt | None) -> None:
        """Write what `attempt` returns or, with None, remove it. Raises `StoreError`."""
        path = self.vm_directory(vm) / "rollout.json"
        if attempt is not None:
            self._save(vm, path.name, attempt)
            return
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise _failed(path, error) from None

    def in_present_terms(self, vm: str, digest: str) -> str:
        """Translate a digest of an earlier host key to the present key. Returns any other digest unchanged.

        The host may have an earlier key again, for example from a backup. Translations to the key that it
        had in between are then not used.
        """
        told = self.renewed(vm).get(digest)
        return told if told is not None and self.key.has_made(told) else digest

    def renewed(self, vm: str) -> Mapping[str, str]:
        """Known translations: from digests of earlier host keys to digests of the present key."""
        known = self._renewed.get(vm)
        if known is None:
            known = self._renewed[vm] = (self._load(vm, "renewed.json", Renewed) or Renewed()).digests
        return known

    def record_renewed(self, vm: str, digests: Mapping[str, str]) -> None:
        """Write what `renewed` returns. Raises `StoreError`."""
        self._save(vm, "renewed.json", Renewed(dict(digests)))
        self._renewed[vm] = dict(digests)

    def restarts(self, vm: str) -> list[float]:
        """The moments that `record_restarts` wrote last; empty where there are none."""
        return (self._load(vm, "restarts.json", Restarts) or Restarts()).moments

    def record_restarts(self, vm: str, moments: list[float]) -> None:
        """Write when the VM was restarted, in seconds since the host's boot. Raises `StoreError`."""
        self._save(vm, "restarts.json", Restarts(moments))

    def reported(self, vm: str, invocation_id: str) -> Stamp | None:
        """The launcher's report of an invocation, as `note_report` wrote it; None where there is none."""
        try:
            noted = Stamp.from_bytes(self._read(self.vm_directory(vm) / "reported.json", RECORD_MAX))
        except (OSError, HandoffError):
            return None
        return noted if noted.invocation_id == invocation_id else None

    def note_report(self, vm: str, report: Stamp) -> None:
        """Write the first report of an invocation. A later report does not replace it, whoever makes it.

        The file need not survive a power failure, because the invocation does not survive one either.
        """
        if self._reported.get(vm) == report.invocation_id:
            return
        path = self.vm_directory(vm) / "reported.json"
        made = path.with_name(".reported.json.new")
        with suppress(OSError):
            if self.reported(vm, report.invocation_id) is None:
                made.write_bytes(report.to_bytes())
                made.rename(path)
            self._reported[vm] = report.invocation_id

    @contextmanager
    def lock(self, name: str = "seal.lock", *, wait: bool = True) -> Iterator[bool]:
        """Lock a file against other credferry processes and threads. Raises `StoreError`.

        Yields whether this call holds the lock. With ``wait`` it waits for the lock, and yields True.
        """
        try:
            self._make(self.state)
            descriptor = os.open(self.state / name, _LOCK_FLAGS, 0o600)
        except OSError as error:
            raise _failed(self.state / name, error) from None
        try:
            yield _take(descriptor, wait=wait)
        finally:
            os.close(descriptor)

    def _read(self, path: Path, limit: int) -> bytes:
        """Read a file of the store. Root's verbs call this too; the agent's user can put anything there."""
        return read_untrusted(path, limit=limit, below=self.state)

    @staticmethod
    def _without_link(directory: Path) -> Path:
        """Resolve ``current`` to the generation's own directory. Raises OSError where it leads elsewhere."""
        if directory.name != "current":
            return directory
        target = directory.readlink()
        if target.parent != Path("generations") or not target.name.isascii() or not target.name.isdigit():
            raise NotADirectoryError(errno.ENOTDIR, "it leads to no generation of the VM", str(directory))
        return directory.parent / target

    def _load(self, vm: str, name: str, kind: type[_T]) -> _T | None:
        # Most VMs have no such file. This check is faster than one exception for each VM.
        if not os.access(f"{self.state}/vms/{vm}/{name}", os.F_OK):
            return None
        try:
            return msgspec.json.decode(self._read(self.vm_directory(vm) / name, RECORD_MAX), type=kind)
        except (OSError, ValueError, RecursionError):
            # msgspec raises DecodeError, or lets a UnicodeDecodeError through. Both are ValueErrors.
            return None

    def _save(self, vm: str, name: str, record: Assumed | Attempt | Renewed | Restarts) -> None:
        path = self.vm_directory(vm) / name
        try:
            self._make(path.parent)
            replace_durably(path, msgspec.json.encode(record))
        except OSError as error:
            raise _failed(path, error) from None

    def _make(self, directory: Path) -> None:
        """Make a directory, if it is missing, so that it survives a power failure. Raises OSError."""
        # Sync the parent once only: a sync may wait for everything that other processes have written.
        if directory not in self._made or not directory.is_dir():
            make_directory(directory)
            self._made.add(directory)

    def numbers(self, vm: str) -> list[int]:
        """The numbers of all generations that are there, whole or not, in any order."""
        try:
            generations = list((self.vm_directory(vm) / "generations").iterdir())
        except OSError:
            return []
        numbers = [int(path.name) for path in generations if path.name.isascii() and path.name.isdigit()]
        return [number for number in numbers if number < GENERATION_MAX]

    def _prune(self, vm: str, current: int, keep: Container[int]) -> None:
        numbers = sorted(self.numbers(vm), reverse=True)
        older = (number for number in numbers if number <= current)
        # A half-written generation, left by a crash, must not replace one that a rollback could use.
        whole = self._whole.get(vm, set())
        kept = list(
            islice((each for each in older if each in whole or not self._is_half_written(vm, each)), KEEP)
        )
        self._whole[vm] = set(kept)
        for number in {number for number in numbers if number not in keep} - set(kept):
            shutil.rmtree(self.vm_directory(vm) / "generations" / str(number), ignore_errors=True)

    def _is_half_written(self, vm: str, number: int) -> bool:
        """Whether a file of a generation is missing or empty. False where it cannot be opened otherwise."""
        directory = self.vm_directory(vm) / "generations" / str(number)
        try:
            sizes = {path.name: path.stat().st_size for path in directory.iterdir()}
            if not sizes.get(MANIFEST_FILE) or not all(sizes.values()):
                return True
            manifest = self._read_manifest(directory)
        except (OSError, SealError, HandoffError):
            return False
        return not {value_file(entry.name) for entry in manifest.credentials} <= sizes.keys()


def _take(descriptor: int, *, wait: bool) -> bool:
    """Lock an open file. Returns False where another holds the lock and ``wait`` is False."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def _identity(directory: str) -> tuple[int, ...] | None:
    """An identity that changes when a generation's manifest or its list of files changes."""
    try:
        parts = [os.stat(path) for path in (directory, f"{directory}/{MANIFEST_FILE}")]  # noqa: PTH116 (done for each VM in each cycle)
    except OSError:
        return None
    return tuple(
        number for part in parts for number in (part.st_dev, part.st_ino, part.st_mtime_ns, part.st_ctime_ns)
    )


def _written_at(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def _failed(path: Path, error: OSError) -> StoreError:
    if isinstance(error, UnsyncedError):
        return UnsyncedStoreError(
            f"{path}: it is written, and a power failure may still undo that: "
            f"{os.strerror(error.errno or 0)}",
            hint="see what is wrong with the file system of the state directory",
        )
    return StoreError(
        f"{path}: {error.strerror or os.strerror(error.errno or 0)}",
        hint="the store must be on a writable file system with room, and be run as its owner or root",
    )
