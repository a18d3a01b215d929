# SPDX-License-Identifier: MIT
"""The generation that PID 1 unsealed for this start: the manifest and the values that it names."""

from __future__ import annotations

import os

from credferry.launcher import plainjson
from credferry.launcher.errors import Exit, LaunchError, failed
from credferry.launcher.handoff import (
    CREDENTIAL_PREFIX,
    MANIFEST_FILE,
    EarlierFormError,
    HandoffError,
    Kind,
    Manifest,
    ManifestEntry,
    Secret,
    oem_string,
    unit_credential,
    value_file,
)
from credferry.launcher.record import FrozenRecord

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_SIZE_MAX: Final = 1 << 20
"""Bytes. systemd's CREDENTIAL_SIZE_MAX (src/shared/creds-util.h)."""
_CHUNK: Final = 64 << 10
"""Bytes of one read. A buffer for the largest credential would take longer to get than the file."""

_SETTING: Final = f"LoadCredentialEncrypted={CREDENTIAL_PREFIX}:/var/lib/credferry/vms/%i/current"


class Credential(FrozenRecord):
    """One credential on its way into the guest."""

    name: str
    kind: Kind
    value: Secret

    @property
    def string(self) -> Secret:
        """Its OEM string."""
        return oem_string(self.name, self.kind, self.value)

    @property
    def redacted(self) -> str:
        """Its OEM string without the value, safe to show."""
        return oem_string(self.name, self.kind, Secret(b"")).reveal().decode() + "<redacted>"


class Delivered(FrozenRecord):
    """A generation as it arrived: the manifest, and all credentials that it names, in its order."""

    manifest: Manifest
    credentials: tuple[Credential, ...]


def read(directory: str | os.PathLike[str]) -> Delivered:
    """The generation in a unit's credential directory. Raises `LaunchError` (CREDENTIALS or LATER)."""
    data = _read(directory, MANIFEST_FILE, "the manifest")
    try:
        manifest = Manifest.from_bytes(data.reveal(), plainjson.loads)
    except EarlierFormError as error:
        raise LaunchError(
            str(error),
            hint="the agent converts the store when it starts; until then systemd retries this start",
            status=Exit.LATER,
        ) from None
    except HandoffError as error:
        raise _refuse(
            str(error), "agent and launcher must be of the same release; then seal the VM again"
        ) from None
    return Delivered(
        manifest, tuple(_credential(directory, manifest, entry) for entry in manifest.credentials)
    )


def _credential(directory: str | os.PathLike[str], manifest: Manifest, entry: ManifestEntry) -> Credential:
    value = _read(directory, value_file(entry.name), f"credential {entry.name}")
    if not manifest.holds(entry, value):
        raise _refuse(
            f"credential {entry.name} is not the value that was sealed for generation "
            f"{manifest.generation} of VM {manifest.vm}",
            "the file in the store belongs to another VM, another generation or another name; seal "
            "the VM again",
        )
    return Credential(entry.name, entry.kind, value)


def _read(directory: str | os.PathLike[str], file: str, what: str) -> Secret:
    name = unit_credential(file)
    try:
        descriptor = os.open(os.path.join(directory, name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            data = _content(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise failed(
            f"{what} is not in the unit's credentials: {name}",
            error,
            hint=f"the unit needs {_SETTING}, and a sealed generation there",
            status=Exit.CREDENTIALS,
        ) from None
    if len(data) > _SIZE_MAX:
        raise _refuse(
            f"{what} is larger than {_SIZE_MAX} bytes", "systemd does not accept a larger credential"
        )
    return Secret(data)


def _content(descriptor: int) -> bytes:
    """The content of a file, or more than the largest credential's bytes of it."""
    data = b""
    while len(data) <= _SIZE_MAX and (piece := os.read(descriptor, _CHUNK)):
        data += piece
    return data


def _refuse(message: str, hint: str) -> LaunchError:
    return LaunchError(message, hint=hint, status=Exit.CREDENTIALS)
