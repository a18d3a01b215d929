# SPDX-License-Identifier: MIT
"""Seals each generation again when the host has another credential key, and keeps what is known of VMs.

PID 1 cannot open what an earlier key has sealed. So while the agent still has that key, it seals the store's
generations with the present key. Each generation keeps its number. So a start finds its credentials, and a
VM that fails can roll back.

Digests are keyed, so digests of two keys cannot be compared. The agent computes a generation's digest with
the present key from its values. For each VM it stores which new digest belongs to which old one, because the
evidence of a start, the assumption and the last rollout name old digests. This asks neither the source nor
systemd.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from credferry.agent.errors import KeyFileError, SealError, StoreError, TpmError, UnlistableError, describe
from credferry.agent.reconcile.desired import (
    Fingerprints,
    Identity,
    guest_id,
    identity_of,
    of_key,
)
from credferry.agent.reconcile.observer import Observer
from credferry.agent.sealing.credential import unseal
from credferry.agent.store.failures import StoreFailures
from credferry.launcher.handoff import (
    PUSH_MANIFEST,
    Kind,
    Manifest,
    ManifestEntry,
    Secret,
)

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from credferry.agent.config.model import Config, VmConfig
    from credferry.agent.sealing.keys import CredentialKey
    from credferry.agent.store.generations import Store

FileIdentity = tuple[int, int, int, int, int]
_RECENT_NS = 20_000_000
"""Twice the longest tick of Linux. Before 6.13, the times of files are those of the last tick."""


def identity(path: Path) -> FileIdentity | None:
    """Value that changes when a file is replaced, written, or gets another mode; None without a file.

    None also for a file that has changed a moment ago: the kernel can give the times of that change to one
    that follows, and its inode to another file.
    """
    try:
        status = path.lstat()
    except OSError:
        return None
    if abs(time.time_ns() - status.st_ctime_ns) < _RECENT_NS:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def renew(
    configs: Sequence[Config], befores: Iterable[Store], after: Store, only: Container[str] | None = None
) -> set[str]:
    """Seal with the key of ``after`` what the keys of ``befores`` open, and store the new digests.

    ``befores`` are the same store with earlier keys, the newest first: an unfinished renewal leaves
    generations of several keys. For each generation, this uses the first configuration that reproduces its
    old digest. If it was interrupted, it must be run again. Returns the VMs for which the store failed: it
    must be run again for them, as ``only`` says. Raises `StoreError` where it failed for all.
    """
    befores = [each for each in befores if each.key != after.key]
    keys = (after.key, *(each.key for each in befores))
    names = {name for config in configs for name in config.vms if only is None or name in only}
    return {name for before in befores for name in _renew(configs, before, after, keys, sorted(names))}


def _renew(
    configs: Sequence[Config],
    before: Store,
    after: Store,
    keys: Sequence[CredentialKey],
    names: Sequence[str],
) -> list[str]:
    observers = [Observer(config, before) for config in configs]
    left, failures = [], StoreFailures()
    with after.lock():
        for name in names:
            of_vm = [each for each in observers if name in each.config.vms]
            left.append(name)
            with failures.kept():
                if _is_renewed(_Renewal(name, of_vm, before, after, keys)):
                    left.remove(name)
    if left == [*names]:
        failures.raise_first()
    return left


def _is_renewed(renewal: _Renewal) -> bool:
    """Renew one VM's generations. Returns whether they could be listed. Raises `StoreError`."""
    try:
        return renewal.do()
    except (OSError, SealError) as error:
        reason = error.strerror if isinstance(error, OSError) else describe(error)
        place = renewal.after.vm_directory(renewal.name)
        raise StoreError(
            f"{place}: cannot seal this again with the host's new key: {reason}",
            hint="the store must be on a writable file system with room; the agent retries",
        ) from None


@dataclass(frozen=True, slots=True)
class _Renewal:
    """Renewal of one VM's generations."""

    name: str
    observers: Sequence[Observer]
    before: Store
    after: Store
    keys: Sequence[CredentialKey]
    """All keys of this renewal. Digests of other keys are of no use any more."""

    def do(self) -> bool:
        """Renew all. Digests come first: they cannot be computed after the generations are sealed again.

        Returns False where the generations cannot be listed. Then none counts as known, until a later call.
        """
        try:
            numbers, is_listed = self.before.numbers(self.name), True
        except UnlistableError:
            numbers, is_listed = [], False
        renewed = list(self._generations(numbers))
        digests = {old.digest: new.digest for old, new, _ in renewed}
        known = self.after.renewed(self.name)
        for digest in self._noted_digests():
            if digest not in known:  # else an interrupted run has sealed its generation
                digests.setdefault(digest, _digest_of_other(digest, self.after.key))
        # An unfinished renewal may have stored a digest of its key, and not have sealed the generation.
        digests = {known[old]: new for old, new in digests.items() if old in known} | digests
        told = {old: digests.get(new, new) for old, new in known.items()} | digests
        told = {old: new for old, new in told.items() if old != new and self._is_of_use(new)}
        if told != known:
            self.after.record_renewed(self.name, told)
        for _, manifest, values in renewed:
            self.after.replace(manifest, values)
        return is_listed

    def _is_of_use(self, digest: str) -> bool:
        return any(key.has_made(digest) for key in self.keys)

    def _generations(
        self, numbers: Iterable[int]
    ) -> Iterator[tuple[Manifest, Manifest, Mapping[str, Secret]]]:
        """For each generation that the old key opens: its old manifest, its new manifest, its values."""
        for number in numbers:
            old = self.before.generation(self.name, number)
            if old is None:
                continue
            try:
                values = self.before.values(self.name, number)
            except TpmError:
                raise  # it may open later
            except (StoreError, SealError):
                continue  # it cannot be opened, and stays so
            now = self._identity(old, values)
            yield old, old.but(digest=now.digest, credentials=now.entries + _own_entries(old)), values

    def _identity(self, manifest: Manifest, values: Mapping[str, Secret]) -> Identity:
        """Identity of a generation's values with the present key."""
        for observer in self.observers:
            vm = observer.config.vms[self.name]
            published, guest = self._published(observer, vm, manifest, values)
            if published is None or not published.keys() <= vm.credentials.keys():
                continue
            old = identity_of(vm, published, Fingerprints(self.before.key), guest)
            if old.digest == manifest.digest:
                return identity_of(vm, published, Fingerprints(self.after.key), guest)
        # The configuration has changed since. The generation differs from what is published, and must
        # continue to differ.
        return Identity(
            _digest_of_other(manifest.digest, self.after.key),
            tuple(
                each.but(fingerprint=_other(each.fingerprint, self.after.key)[:16])
                for each in manifest.credentials
                if each.name != PUSH_MANIFEST
            ),
        )

    @staticmethod
    def _published(
        observer: Observer, vm: VmConfig, manifest: Manifest, values: Mapping[str, Secret]
    ) -> tuple[dict[str, Secret] | None, str]:
        """A generation's values as published (None if they cannot be opened), and its guest key id."""
        try:
            guest = observer.guest_key(vm)
            return {
                each.name: _opened(each, values[each.name], guest)
                for each in manifest.credentials
                if each.name != PUSH_MANIFEST
            }, guest_id(guest)
        except (KeyFileError, SealError):
            return None, ""

    def _noted_digests(self) -> Iterator[str]:
        """Digests of the old key that evidence, an assumption, a push or the last rollout names."""
        evidence = [each.starts.kept_evidence(each.config.vms[self.name]) for each in self.observers]
        noted = (
            self.before.assumed(self.name),
            self.before.pushed(self.name),
            self.before.attempt(self.name),
        )
        for each in (*noted, *evidence):
            if each is not None and self.before.key.has_made(each.digest):
                yield each.digest


def _own_entries(manifest: Manifest) -> tuple[ManifestEntry, ...]:
    """The entry for the guest's manifest. It is sealed for the guest, and its receipt stays valid."""
    return tuple(each for each in manifest.credentials if each.name == PUSH_MANIFEST)


def _opened(entry: ManifestEntry, value: Secret, guest: CredentialKey | None) -> Secret:
    """A value as it was published. Raises `SealError`."""
    if entry.kind is not Kind.SEALED:
        return value
    if guest is None:
        raise SealError(
            f"credential {entry.name} is sealed for the guest, but there is no guest key", hint=""
        )
    return Secret(unseal(value.reveal(), name=entry.name, key=guest))


def _digest_of_other(digest: str, key: CredentialKey) -> str:
    """Stand-in digest for unknown values, with another key. It differs from all published digests."""
    return of_key(_other(digest, key), key)


def _other(known: str, key: CredentialKey) -> str:
    return key.mac("of an earlier key").of(known.encode()).hex()
