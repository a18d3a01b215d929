# SPDX-License-Identifier: MIT
"""Credential keys: the host's own, and the master copies of guests' keys.

The file is systemd's ``struct credential_host_secret_format`` (src/shared/creds-util.c): 16 bytes of
application-specific machine id, then 1 to 4096 bytes of secret data. systemd deletes a file whose first
16 bytes belong to another machine, even if it only decrypts. So this module checks them first, and never
overwrites a key.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, final

from credferry.agent.digests import Mac, are_same, sha256
from credferry.agent.errors import KeyFileError

if TYPE_CHECKING:
    from collections.abc import Container
    from pathlib import Path

_APPLICATION_ID = bytes.fromhex("d3acecba0dad4cdfb8c9381528936c58")
HEADER_SIZE = 16
"""Bytes that say which machine the key is for."""
_DATA_MAX = 4096
"""systemd 252 and 257 abort on more, although they allow a file of 16 MiB."""
KEY_SIZE_MAX = HEADER_SIZE + _DATA_MAX
"""Limit for a key file, in bytes."""
KEY_MODE = 0o400
"""systemd uses a key file of no other mode."""
KEY_DIGITS = 8
"""This many hex digits at the end of a digest show which host key made it."""


@final
class CredentialKey:
    """A credential key, and values derived from it. Its repr hides it, and it cannot be pickled."""

    __slots__ = ("_data", "_derived", "_macs", "_own", "aes_key")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._own = Mac(data)
        self._derived: dict[str, bytes] = {}
        self._macs: dict[str, Mac] = {}
        # The key of a credential without TPM2 is the digest of the secret data alone: no salt, no name.
        self.aes_key = sha256(data)

    @classmethod
    def from_file_content(cls, content: bytes) -> CredentialKey:
        """The key in a whole ``credential.secret`` file. Raises `KeyFileError` for a wrong size."""
        if not HEADER_SIZE < len(content) <= KEY_SIZE_MAX:
            raise KeyFileError(
                f"a credential key file holds {HEADER_SIZE + 1} to {KEY_SIZE_MAX} bytes",
                hint="make one with: systemd-creds setup, or: credferry guest-key create",
            )
        return cls(content[HEADER_SIZE:])

    def derive(self, purpose: str) -> bytes:
        """32 bytes for one purpose. They reveal neither the key nor the bytes for another purpose."""
        known = self._derived.get(purpose)
        if known is None:
            known = self._own.of(b"credferry/" + purpose.encode())
            self._derived[purpose] = known
        return known

    def mac(self, purpose: str) -> Mac:
        """HMAC-SHA256 under `derive`'s 32 bytes for the purpose."""
        known = self._macs.get(purpose)
        if known is None:
            known = self._macs[purpose] = Mac(self.derive(purpose))
        return known

    def for_machine(self, machine_id: str) -> bytes:
        """The content of a key file that the systemd of a machine accepts. Raises `KeyFileError`."""
        return hashed_machine_id(machine_id) + self._data

    @property
    def digest_id(self) -> str:
        """The last digits of every digest that this key makes."""
        return self.derive("digest key id").hex()[:KEY_DIGITS]

    def has_made(self, digest: str) -> bool:
        """Whether this key has made a digest."""
        return digest.endswith(self.digest_id)

    def __repr__(self) -> str:
        return "CredentialKey(…)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CredentialKey) and are_same(self._data, other._data)

    __hash__ = None  # type: ignore[assignment]  # a key is never in a set or a dict's key

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a key is not pickled")


def hashed_machine_id(machine_id: str) -> bytes:
    """The first 16 bytes of a machine's key file: ``systemd-id128 machine-id --app-specific=d3acecba…``.

    Raises `KeyFileError` for anything but 32 hexadecimal digits that are not all zero.
    """
    digits = machine_id.strip().replace("-", "")
    try:
        raw = bytes.fromhex(digits)
    except ValueError:
        raw = b""
    if len(raw) != HEADER_SIZE or not any(raw):
        raise KeyFileError(
            f"{machine_id.strip()!r} is not a machine id",
            hint="give 32 hexadecimal digits that are not all zero, as in /etc/machine-id",
        )
    digest = bytearray(Mac(raw).of(_APPLICATION_ID)[:HEADER_SIZE])
    digest[6] = digest[6] & 0x0F | 0x40
    digest[8] = digest[8] & 0x3F | 0x80
    return bytes(digest)


def read_key(path: Path, *, machine_id: str | None, owners: Container[int] | None = None) -> CredentialKey:
    """Read a key file under systemd's own conditions: a regular file, one link, mode 0400.

    The file must be for the machine ``machine_id``, and one of the uids ``owners`` must own it. None skips
    that check. Raises `KeyFileError`, and `FileNotFoundError` when there is no file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        reason = "is a symbolic link" if error.errno == errno.ELOOP else os.strerror(error.errno or 0)
        raise KeyFileError(
            f"{path}: cannot be read: {reason}",
            hint="the key must be a regular file that root owns; run as root",
        ) from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            raise KeyFileError(f"{path}: not a regular file with one link", hint="restore it from a backup")
        if stat.S_IMODE(status.st_mode) != KEY_MODE:
            raise KeyFileError(
                f"{path}: mode is {stat.S_IMODE(status.st_mode):04o}, but systemd accepts only 0400",
                hint=f"find out who could read it, then: chmod 0400 {path}",
            )
        if owners is not None and status.st_uid not in owners:
            raise KeyFileError(
                f"{path}: belongs to uid {status.st_uid}, which can read and replace it",
                hint=f"find out who that is, then: chown root:root {path}",
            )
        content = os.read(descriptor, KEY_SIZE_MAX + 1)
    except OSError as error:
        raise KeyFileError(f"{path}: cannot be read: {error.strerror}", hint="check the disk") from None
    finally:
        os.close(descriptor)
    try:
        key = CredentialKey.from_file_content(content)
    except KeyFileError as error:
        raise KeyFileError(f"{path}: {error}", hint=error.hint) from None
    if machine_id is not None and content[:HEADER_SIZE] != hashed_machine_id(machine_id):
        raise KeyFileError(
            f"{path}: made for another machine id; systemd would delete it",
            hint="restore this host's own key; or move this one away, and a new one is made",
        )
    return key


def host_key(path: Path, *, machine_id_file: Path) -> CredentialKey:
    """The host's key. Makes one, as systemd does, where there is none; never overwrites one.

    Raises `KeyFileError`.
    """
    machine_id = read_machine_id(machine_id_file)
    try:
        return read_host_key(path, machine_id=machine_id)
    except FileNotFoundError:
        try:
            create_key(path, machine_id=machine_id)
        except FileExistsError:
            pass  # systemd, or another credferry process, was faster: use its key
        except KeyFileError as error:
            raise KeyFileError(str(error), hint="make the key once, as root: systemd-creds setup") from None
    try:
        return read_host_key(path, machine_id=machine_id)
    except FileNotFoundError:
        raise KeyFileError(
            f"{path}: was removed while the agent made it", hint="find out what removes it"
        ) from None


def read_host_key(path: Path, *, machine_id: str) -> CredentialKey:
    """The host's key, owned by root or the calling user. Raises as `read_key` does."""
    return read_key(path, machine_id=machine_id, owners={0, os.geteuid()})


def read_machine_id(path: Path) -> str:
    """The machine id in a file such as /etc/machine-id. Raises `KeyFileError`."""
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        raise KeyFileError(
            f"{path}: cannot read a machine id", hint="run: systemd-machine-id-setup"
        ) from None


def create_key(path: Path, *, machine_id: str) -> None:
    """Make a key file that the systemd of the machine with this id accepts: whole, durable, mode 0400.

    Raises `FileExistsError` where a file exists, which stays as it is. Raises `KeyFileError` when the key
    cannot be made.
    """
    header = hashed_machine_id(machine_id)
    try:
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _cannot_make(path, error) from None
    try:
        descriptor = os.open(path.parent, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, KEY_MODE)
        with os.fdopen(descriptor, "wb") as file:
            file.write(header + os.urandom(_DATA_MAX))
            file.flush()
            os.fchmod(descriptor, KEY_MODE)
            os.fsync(descriptor)
            os.link(f"/proc/self/fd/{descriptor}", path.name, dst_dir_fd=directory, follow_symlinks=True)
        os.fsync(directory)
    except FileExistsError:
        raise
    except OSError as error:
        raise _cannot_make(path, error) from None
    finally:
        os.close(directory)


def _cannot_make(path: Path, error: OSError) -> KeyFileError:
    return KeyFileError(
        f"{path}: cannot make this key: {os.strerror(error.errno or 0)}",
        hint="its directory must exist and be writable; run as root",
    )
