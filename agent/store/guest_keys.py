# SPDX-License-Identifier: MIT
"""Guests' keys that the host makes, hands to the guest at each start of its VM, and replaces on order.

The master copies are in the state directory: ``NAME.secret``, and ``NAME.previous`` after a rotation. A VM
that is rolled back to a generation of before the rotation needs the previous key. So the key that a guest
gets is the one that opens the generation with which its VM starts.
"""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from credferry.agent.errors import KeyFileError, SealError
from credferry.agent.sealing.credential import unseal
from credferry.agent.sealing.keys import HEADER_SIZE, KEY_MODE, create_key, hashed_machine_id, read_key
from credferry.agent.store.opening import guest_key_path
from credferry.agent.untrusted import read_untrusted
from credferry.launcher.handoff import (
    GUEST_KEY_FILE,
    GUEST_KEYS_PARENT,
    MANIFEST_FILE,
    HandoffError,
    Kind,
    Manifest,
    Secret,
    unit_credential,
    value_file,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from credferry.agent.config.model import Config, VmConfig
    from credferry.agent.sealing.keys import CredentialKey

_CREDENTIAL_MAX = 4 << 20
"""Bytes that are read of a credential of a VM's unit; systemd's own limit is 1 MiB of plaintext."""
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def make_missing(config: Config, vm: VmConfig) -> bool:
    """Make a VM's key if its guest gets it from the host and there is none. Raises `KeyFileError`."""
    path = guest_key_path(config, vm.name)
    if vm.guest_machine_id is None or os.path.lexists(path):
        return False
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        create_key(path, machine_id=vm.guest_machine_id)
    except FileExistsError:
        return False  # another process was faster
    except OSError as error:
        raise KeyFileError(f"{path.parent}: {error.strerror}", hint="run as root") from None
    return True


def rotate(
    config: Config, vm: VmConfig, machine_id: str, sealed: tuple[Manifest, Mapping[str, Secret]] | None
) -> None:
    """Put a new key in the place of a VM's key, which is kept as the previous one.

    ``sealed`` is the VM's current generation, if any. Raises `KeyFileError` if that generation still needs
    the previous key, which this rotation would remove.
    """
    path, previous = guest_key_path(config, vm.name), previous_path(config, vm.name)
    if path.exists() and sealed is not None and not opens(read_key(path, machine_id=None), *sealed):
        raise KeyFileError(
            f"{vm.name}: its generation is not sealed with its present guest key yet; nothing was changed",
            hint=f"run: credferry sync {vm.name}; then rotate the key",
        )
    try:
        with suppress(FileNotFoundError):
            path.rename(previous)
        create_key(path, machine_id=machine_id)
    except OSError as error:
        raise KeyFileError(f"{path}: cannot be replaced: {error.strerror}", hint="run as root") from None


def starting(credentials: Path) -> tuple[Manifest, dict[str, Secret]]:
    """The generation that PID 1 has opened for a VM's unit: its manifest, and one sealed value at most.

    ``credentials`` is the credentials directory of the unit. Raises `KeyFileError`.
    """

    def read(name: str) -> bytes:
        return read_untrusted(credentials / unit_credential(name), limit=_CREDENTIAL_MAX, below=credentials)

    try:
        manifest = Manifest.from_bytes(read(MANIFEST_FILE))
        sealed = [each.name for each in manifest.credentials if each.kind is Kind.SEALED]
        return manifest, {name: Secret(read(value_file(name))) for name in sealed[:1]}
    except (OSError, HandoffError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise KeyFileError(
            f"{credentials}: the VM's credentials cannot be read: {reason}",
            hint="this verb is for the VM's unit; see /etc/systemd/system/microvm@NAME.service.d",
        ) from None


def key_that_opens(
    config: Config, vm: VmConfig, manifest: Manifest, values: Mapping[str, Secret]
) -> CredentialKey:
    """The key with which a generation's values are sealed: the VM's present key, or the previous one.

    Root calls this with the rights of the agent's user, who could have put links there. Raises
    `KeyFileError`.
    """
    path = guest_key_path(config, vm.name)
    for each in (path, previous_path(config, vm.name)):
        with suppress(FileNotFoundError):
            key = read_key(each, machine_id=None, owners={os.geteuid()})
            if opens(key, manifest, values):
                return key
    raise KeyFileError(
        f"{path}: no key opens generation {manifest.generation} of VM {vm.name}, so its guest gets none",
        hint=f"seal a new generation: credferry sync {vm.name}",
    )


def give(config: Config, vm: VmConfig, key: CredentialKey, machine_id: str) -> Path:
    """Put a key where a guest reads it. The file belongs to root, and nobody else can reach it.

    Root calls this when the VM starts. Returns the guest's file. Raises `KeyFileError`.
    """
    directory = Path(config.runtime_directory) / GUEST_KEYS_PARENT / vm.name
    return _publish(directory, key.for_machine(machine_id))


def previous_path(config: Config, vm: str) -> Path:
    """The path of the key that a guest had before its key was rotated."""
    return guest_key_path(config, vm).with_name(f"{vm}.previous")


def opens(key: CredentialKey, manifest: Manifest, values: Mapping[str, Secret]) -> bool:
    """Whether a key opens what is sealed for the guest. Any key does, where nothing is sealed for it."""
    for entry in manifest.credentials:
        if entry.kind is Kind.SEALED:
            try:
                unseal(values[entry.name].reveal(), name=entry.name, key=key)
            except SealError:
                return False
            return True
    return True


def _publish(directory: Path, content: bytes) -> Path:
    """Write a guest's file. It is whole at once, and no other user can reach or replace it."""
    path, new = directory / GUEST_KEY_FILE, f"{GUEST_KEY_FILE}.new"
    try:
        with _own_directory(directory) as opened:
            _require_same_machine(directory, content, opened)
            with suppress(FileNotFoundError):
                os.unlink(new, dir_fd=opened)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with os.fdopen(os.open(new, flags, KEY_MODE, dir_fd=opened), "wb") as file:
                file.write(content)
                os.fchmod(file.fileno(), KEY_MODE)
            os.rename(new, GUEST_KEY_FILE, src_dir_fd=opened, dst_dir_fd=opened)
    except OSError as error:
        raise KeyFileError(
            f"{path}: cannot be written: {error.strerror}", hint="run as root; check the free space of /run"
        ) from None
    return path


def _require_same_machine(directory: Path, content: bytes, opened: int) -> None:
    """Refuse a key for another machine than the VM's spec names. Its guest's systemd would delete it."""
    try:
        descriptor = os.open("machine-id", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=opened)
    except FileNotFoundError:
        return  # microvm.nix has no spec: there one option is the source of both
    with os.fdopen(descriptor, encoding="ascii") as file:
        machine_id = file.read()
    if content[:HEADER_SIZE] != hashed_machine_id(machine_id):
        raise KeyFileError(
            f"{directory}: the VM's spec has another machine id than the configuration; no key is given",
            hint="set machine_id in [guest_key] of vm.toml to the guest_machine_id of the VM's table",
        )


@contextmanager
def _own_directory(path: Path) -> Iterator[int]:
    """A descriptor of a directory. No other user can change it, or the last two parts of its path."""
    above = os.open(path.parent, _DIRECTORY)
    try:
        _require_own(above, path.parent)
        directory = os.open(path.name, _DIRECTORY, dir_fd=above)
    finally:
        os.close(above)
    try:
        _require_own(directory, path)
        yield directory
    finally:
        os.close(directory)


def _require_own(descriptor: int, path: Path) -> None:
    status = os.fstat(descriptor)
    if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise KeyFileError(
            f"{path}: another user can write to this directory, so the guest's key was not put there",
            hint=f"find out who made it; then: chown root:root {path} && chmod 0700 {path}",
        )
