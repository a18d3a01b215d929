# SPDX-License-Identifier: MIT
"""Generations of sealed credentials per VM: written whole, durable, published by renaming one symlink.

::

    STATE/form                                 which form the store is of, see `credferry.agent.store.form`
    STATE/seal.lock                            held while generations are written
    STATE/rollout.VM.lock                      held while the VM is restarted
    STATE/guest-keys/VM.secret                 master copies of guests' keys
    STATE/vms/VM/current -> generations/7      what the unit's LoadCredentialEncrypted= names
    STATE/vms/VM/generations/7/manifest        sealed; so is each value.NAME
    STATE/vms/VM/{assumed,rollout}.json        what is known of the running VM and of its last rollout
    STATE/vms/VM/renewed.json                  what digests of an earlier host key are with the present one
    STATE/vms/VM/restarts.json                 when it was restarted lately
    STATE/vms/VM/reported.json                 what its launcher reported first of its start
    STATE/vms/VM/held                          it is not to be restarted until it is released

PID 1 opens ``current`` once for a unit's start, so no start sees a mix of two generations.
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
"""Bytes of one sealed file: Base64 in lines takes less than twice what it holds."""
RECORD_MAX = 1 << 20
"""Bytes of a small record beside the generations."""
# A FIFO does not keep whoever locks it waiting, and a link is not followed.
_LOCK_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
KEEP = 3
"""Generations kept for each VM, the current one included."""


_T = TypeVar("_T", Assumed, Attempt, Renewed, Restarts)


def rollout_lock(vm: str) -> str:
    """The name, for `Store.lock`, of what is held while a VM is restarted."""
    return f"rollout.{vm}.lock"


@dataclass(frozen=True, slots=True)
class Store:
    """The sealed generations below one state directory, readable by root alone."""

    state: Path
    key: CredentialKey
    _opened: dict[str, tuple[tuple[int, ...] | None, Manifest | None]] = field(default_factory=dict)
    """The manifest that was opened last, by VM, and what tells whether it is still the same."""
    _reported: dict[str, str] = field(default_factory=dict)
    """The invocation whose report is noted, by VM."""
    _renewed: dict[str, Mapping[str, str]] = field(default_factory=dict)
    """See `renewed`, by VM."""
    _whole: dict[str, set[int]] = field(default_factory=dict)
    """Generations that are known to be whole, by VM: to open each at each sealing would be costly."""
    _made: set[Path] = field(default_factory=set)
    """Directories that are known to last."""

    def vm_directory(self, vm: str) -> Path:
        """Where everything about one VM is."""
        return self.state / "vms" / vm

    def current(self, vm: str) -> Manifest | None:
        """The manifest of a VM's current generation; None when there is none that a start could use.

        A generation that cannot be opened, is another VM's, or lacks a file counts as none: it is simply
        sealed again.
        """
        return self._manifest(vm, f"{self.state}/vms/{vm}/current")

    def _manifest(self, vm: str, directory: str) -> Manifest | None:
        # Opening it takes a hundred times what asking does whether it is the one that was opened last.
        seen = _identity(directory)
        known = self._opened.get(vm)
        if known is None or known[0] != seen or seen is None:
            known = self._opened[vm] = (seen, self._open_manifest(vm, Path(directory)))
        return known[1]

    def _open_manifest(self, vm: str, directory: Path) -> Manifest | None:
        try:
            directory = self._without_link(directory)
            blob = self._read(directory / MANIFEST_FILE, SEALED_FILE_MAX)
            manifest = Manifest.from_bytes(unseal(blob, name=unit_credential(MANIFEST_FILE), key=self.key))
            files = {path.name for path in directory.iterdir()}
            number = directory.name
        except (OSError, SealError, HandoffError):
            return None
        expected = {MANIFEST_FILE, *(value_file(entry.name) for entry in manifest.credentials)}
        is_own = manifest.vm == vm and str(manifest.generation) == number
        return manifest if is_own and files == expected else None

    def generation(self, vm: str, number: int) -> Manifest | None:
        """The manifest of a generation that is kept; None where it is there no more, or cannot be opened."""
        return self._open_manifest(vm, self.vm_directory(vm) / "generations" / str(number))

    def current_number(self, vm: str) -> int:
        """The number of a VM's current generation, whether or not it can be opened; 0 for none."""
        try:
            name = (self.vm_directory(vm) / "current").readlink().name
        except OSError:
            return 0
        return int(name) if name.isascii() and name.isdigit() else 0

    def sealed_at(self, manifest: Manifest) -> float | None:
        """When a generation was written, on the wall; None where it is there no more."""
        return _written_at(self.vm_directory(manifest.vm) / "generations" / str(manifest.generation))

    def values(self, vm: str, number: int = 0) -> dict[str, Secret]:
        """The values of one of a VM's generations, by default of the current one, as its manifest has them.

        Raises `StoreError` where they cannot be opened or one is not the manifest's, and `SealError`.
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
        """The number of the VM's next generation; numbers are not used twice while any is left."""
        return max(self.numbers(vm), default=0) + 1

    def write(self, manifest: Manifest, values: Mapping[str, Secret], keep: Container[int] = ()) -> None:
        """Write a generation and publish it. After this returns it survives a power failure.

        The manifest is bound to the values by a new random key.
        Of older generations the last few stay, and those to ``keep``, as one may have to go back to them.
        Raises `UnsyncedStoreError` where the new generation is current already. Raises `StoreError` or
        `SealError` where the one before it still is; the files of the new one are then removed.
        """
        directory = self.vm_directory(manifest.vm)
        generation = directory / "generations" / str(manifest.generation)
        bound = manifest.bound(values, secrets.token_hex(32))
        contents = {MANIFEST_FILE: Secret(bound.to_bytes())}
        contents |= {value_file(name): value for name, value in values.items()}
        try:
            self._make(generation.parent)
            generation.mkdir(0o700)
        except OSError as error:
            raise _failed(generation, error) from None
        try:
            write_all_durably(
                generation,
                (
                    (name, seal(content.reveal(), name=unit_credential(name), key=self.key))
                    for name, content in contents.items()
                ),
            )
            sync_directory(generation.parent)
            point(directory / "current", f"generations/{manifest.generation}")
        except UnsyncedError as error:
            # ``current`` names it by now: a start of the VM would find nothing where it were removed.
            raise _failed(generation, error) from None
        except (OSError, SealError) as error:
            shutil.rmtree(generation, ignore_errors=True)
            if isinstance(error, SealError):
                raise
            raise _failed(generation, error) from None
        self._whole.setdefault(manifest.vm, set()).add(manifest.generation)
        self._prune(manifest.vm, manifest.generation, keep)

    def revert(self, vm: str, number: int) -> Manifest | None:
        """Make an older generation current again; its manifest, or None when it is there no more.

        Raises `StoreError`.
        """
        directory = self.vm_directory(vm)
        manifest = self._open_manifest(vm, directory / "generations" / str(number))
        if manifest is not None:
            try:
                point(directory / "current", f"generations/{number}")
            except OSError as error:
                raise _failed(directory / "current", error) from None
        return manifest

    def previous(self, vm: str) -> Manifest | None:
        """The newest generation before the current one that holds something else; None for none."""
        current = self.current(vm)
        if current is None:
            return None
        directory = self.vm_directory(vm) / "generations"
        older = (
            self._open_manifest(vm, directory / str(number))
            for number in sorted(self.numbers(vm), reverse=True)
            if number < current.generation
        )
        return next((each for each in older if each is not None and each.digest != current.digest), None)

    def find(self, vm: str, digest: str, number: int) -> int:
        """The number of a generation of this digest that can be gone back to; 0 for none.

        That is ``number``, if it is such a one, or else the newest: what was sealed anew has another number.
        """
        for each in (number, *sorted(self.numbers(vm), reverse=True)):
            manifest = self.generation(vm, each) if each else None
            if manifest is not None and manifest.digest == digest:
                return each
        return 0

    def is_held(self, vm: str) -> bool:
        """Whether an operator holds the VM."""
        return os.access(f"{self.state}/vms/{vm}/held", os.F_OK)  # no exception inside, at each look

    def hold(self, vm: str, *, held: bool) -> None:
        """Hold a VM or, with False, release it; survives a reboot. Raises `StoreError`."""
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
        """When an operator has held the VM, on the wall; None where it is not held."""
        return _written_at(self.vm_directory(vm) / "held")

    def attempted_at(self, vm: str) -> float | None:
        """When `attempt` was last noted, on the wall; None where there is none."""
        return _written_at(self.vm_directory(vm) / "rollout.json")

    def assumed(self, vm: str) -> Assumed | None:
        """What the VM's unstamped invocation is taken to run."""
        noted = self._load(vm, "assumed.json", Assumed)
        return noted and msgspec.structs.replace(noted, digest=self.in_present_terms(vm, noted.digest))

    def assume(self, vm: str, assumed: Assumed) -> None:
        """Remember it. Raises `StoreError`."""
        self._save(vm, "assumed.json", assumed)

    def attempt(self, vm: str) -> Attempt | None:
        """How the VM's last rollout ended, if it did not end well."""
        noted = self._load(vm, "rollout.json", Attempt)
        return noted and msgspec.structs.replace(noted, digest=self.in_present_terms(vm, noted.digest))

    def record_attempt(self, vm: str, attempt: Attempt | None) -> None:
        """Remember or, with None, forget it. Raises `StoreError`."""
        path = self.vm_directory(vm) / "rollout.json"
        if attempt is not None:
            self._save(vm, path.name, attempt)
            return
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise _failed(path, error) from None

    def in_present_terms(self, vm: str, digest: str) -> str:
        """What a digest of an earlier key of the host is with the present key; any other, as it is.

        The host may have an earlier key again, such as one from a backup: what was noted for the key in
        between says nothing then.
        """
        told = self.renewed(vm).get(digest)
        return told if told is not None and told.endswith(self.key.digest_id) else digest

    def renewed(self, vm: str) -> Mapping[str, str]:
        """What digests of earlier keys of the host are with the present one, as far as that is known."""
        known = self._renewed.get(vm)
        if known is None:
            known = self._renewed[vm] = (self._load(vm, "renewed.json", Renewed) or Renewed()).digests
        return known

    def record_renewed(self, vm: str, digests: Mapping[str, str]) -> None:
        """Remember that. Raises `StoreError`."""
        self._save(vm, "renewed.json", Renewed(dict(digests)))
        self._renewed[vm] = dict(digests)

    def restarts(self, vm: str) -> list[float]:
        """When the VM was restarted lately, as `record_restarts` was told."""
        return (self._load(vm, "restarts.json", Restarts) or Restarts()).moments

    def record_restarts(self, vm: str, moments: list[float]) -> None:
        """Remember when the VM was restarted, in seconds since the host's boot. Raises `StoreError`."""
        self._save(vm, "restarts.json", Restarts(moments))

    def reported(self, vm: str, invocation_id: str) -> Stamp | None:
        """What was noted of the launcher's report of an invocation; None where nothing was."""
        try:
            noted = Stamp.from_bytes(self._read(self.vm_directory(vm) / "reported.json", RECORD_MAX))
        except (OSError, HandoffError):
            return None
        return noted if noted.invocation_id == invocation_id else None

    def note_report(self, vm: str, report: Stamp) -> None:
        """Note the first report of an invocation, so that no later one counts, whoever makes it.

        It need not survive a power failure: neither does the invocation.
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
        """Keep others of ours from doing the same. Yields whether the lock was had. Raises `StoreError`."""
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
        """A file of the store. Root's verbs read it too, where the agent's user can put anything there."""
        return read_untrusted(path, limit=limit, below=self.state)

    @staticmethod
    def _without_link(directory: Path) -> Path:
        """A generation's own directory, where ``current`` leads to one of the VM's. Raises OSError."""
        if directory.name != "current":
            return directory
        target = directory.readlink()
        if target.parent != Path("generations") or not target.name.isascii() or not target.name.isdigit():
            raise NotADirectoryError(errno.ENOTDIR, "it leads to no generation of the VM", str(directory))
        return directory.parent / target

    def _load(self, vm: str, name: str, kind: type[_T]) -> _T | None:
        # Mostly there is none, and an exception for each VM at each look takes longer than to ask.
        if not os.access(f"{self.state}/vms/{vm}/{name}", os.F_OK):
            return None
        try:
            return msgspec.json.decode(self._read(self.vm_directory(vm) / name, RECORD_MAX), type=kind)
        except (OSError, ValueError, RecursionError):
            # msgspec's DecodeError and the UnicodeDecodeError that it lets through are ValueErrors.
            return None

    def _save(self, vm: str, name: str, record: Assumed | Attempt | Renewed | Restarts) -> None:
        path = self.vm_directory(vm) / name
        try:
            self._make(path.parent)
            replace_durably(path, msgspec.json.encode(record))
        except OSError as error:
            raise _failed(path, error) from None

    def _make(self, directory: Path) -> None:
        """Have a directory be there for good, made by whomever. Raises OSError."""
        # Its parent is not synced each time: that may wait for all that others have written meanwhile.
        if directory not in self._made or not directory.is_dir():
            make_directory(directory)
            self._made.add(directory)

    def numbers(self, vm: str) -> list[int]:
        """The numbers of the generations that are there, whole or not, in no order."""
        try:
            generations = list((self.vm_directory(vm) / "generations").iterdir())
        except OSError:
            return []
        numbers = [int(path.name) for path in generations if path.name.isascii() and path.name.isdigit()]
        return [number for number in numbers if number < GENERATION_MAX]

    def _prune(self, vm: str, current: int, keep: Container[int]) -> None:
        numbers = sorted(self.numbers(vm), reverse=True)
        older = (number for number in numbers if number <= current)
        # What a crash left half-written takes the place of none that could be gone back to.
        whole = self._whole.get(vm, set())
        kept = list(
            islice((each for each in older if each in whole or not self._is_half_written(vm, each)), KEEP)
        )
        self._whole[vm] = set(kept)
        for number in {number for number in numbers if number not in keep} - set(kept):
            shutil.rmtree(self.vm_directory(vm) / "generations" / str(number), ignore_errors=True)

    def _is_half_written(self, vm: str, number: int) -> bool:
        """Whether a generation lacks a file. One that does not open for other reasons may be whole."""
        directory = self.vm_directory(vm) / "generations" / str(number)
        try:
            sizes = {path.name: path.stat().st_size for path in directory.iterdir()}
            if not sizes.get(MANIFEST_FILE) or not all(sizes.values()):
                return True
            blob = self._read(directory / MANIFEST_FILE, SEALED_FILE_MAX)
            manifest = Manifest.from_bytes(unseal(blob, name=unit_credential(MANIFEST_FILE), key=self.key))
        except (OSError, SealError, HandoffError):
            return False
        return not {value_file(entry.name) for entry in manifest.credentials} <= sizes.keys()


def _take(descriptor: int, *, wait: bool) -> bool:
    """Lock an open file; whether it was free, or has become so while it was waited for."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def _identity(directory: str) -> tuple[int, ...] | None:
    """What differs once a generation's files, or which of them there are, have changed."""
    try:
        parts = [os.stat(path) for path in (directory, f"{directory}/{MANIFEST_FILE}")]  # noqa: PTH116 (done for each VM at each look)
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
