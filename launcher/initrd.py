# SPDX-License-Identifier: MIT
"""Sealed credentials in the initrd: this way avoids the limits of SMBIOS, and carries nothing in plaintext.

Linux unpacks one cpio archive after another, and PID 1 in an initrd takes ``/.extra/credentials/NAME.cred``
for encrypted credentials (systemd src/core/import-creds.c, since v251). So the launcher appends a small
archive to a copy of the VM's initramfs. The copy has no name: cloud-hypervisor opens it through a descriptor
that it inherits. It is not a memfd, since Landlock takes no rule for one (EBADFD).
"""

from __future__ import annotations

import contextlib
import os
import stat

from credferry.launcher.errors import Exit, LaunchError, failed
from credferry.launcher.handoff import INITRD_TOTAL_MAX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Final

    from credferry.launcher.credentials import Credential

DESCRIPTOR: Final = 99
"""cloud-hypervisor's descriptor for the copy: below the event pipe's, above those of command lines."""
PATH: Final = f"/proc/self/fd/{DESCRIPTOR}"

_ALIGNMENT: Final = 4
"""Linux refuses an uncompressed archive at other offsets as "invalid magic" (init/initramfs.c)."""
_DIRECTORIES: Final = (".extra", ".extra/credentials")
_TRAILER: Final = "TRAILER!!!"
_CHUNK: Final = 1 << 20


def check(credentials: Sequence[Credential]) -> None:
    """Refuse more bytes than the guest's systemd takes. Raises `LaunchError` (CREDENTIALS)."""
    total = 0
    for credential in credentials:
        total += len(credential.value.reveal())
        if total > INITRD_TOTAL_MAX:
            raise LaunchError(
                f"credential {credential.name} does not fit: a guest takes at most {INITRD_TOTAL_MAX} "
                "bytes of credentials",
                hint="pass fewer or smaller credentials",
                status=Exit.CREDENTIALS,
            )


def archive(files: Iterable[tuple[str, bytes]]) -> bytes:
    """A newc archive (Documentation/driver-api/early-userspace/buffer-format.rst) of ``.extra/credentials``.

    Root owns all entries; files have mode 0400. ``files`` are the credentials' names and contents.
    """
    entries = [(name, stat.S_IFDIR | 0o755, b"") for name in _DIRECTORIES]
    entries += [(f"{_DIRECTORIES[-1]}/{name}.cred", stat.S_IFREG | 0o400, data) for name, data in files]
    parts = [_entry(number, *entry) for number, entry in enumerate(entries, start=1)]
    return b"".join([*parts, _entry(0, _TRAILER, 0, b"")])


def attach(initramfs: str, credentials: Sequence[Credential], directory: str | os.PathLike[str]) -> int:
    """Descriptor of a copy of the initramfs with the credentials appended.

    The copy is an unnamed file in this directory. The descriptor is open for reading and not inheritable.
    Raises `LaunchError`.
    """
    extra = archive((credential.name, credential.value.reveal()) for credential in credentials)
    with contextlib.ExitStack() as stack:
        try:
            source = os.open(initramfs, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise failed(
                "--initramfs cannot be read",
                error,
                hint="give the path of the guest's initrd",
                status=Exit.USAGE,
            ) from None
        stack.callback(os.close, source)
        try:
            copy = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o400)
            stack.callback(os.close, copy)
            size = 0
            while sent := os.sendfile(copy, source, None, _CHUNK):
                size += sent
            _write(copy, bytes(-size % _ALIGNMENT) + extra)
            return os.open(f"/proc/self/fd/{copy}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise failed(
                f"cannot copy the initramfs to {directory}, which needs room for the copy",
                error,
                hint="--initramfs must be a file, and the VM's user must own the unit's runtime directory",
                status=Exit.USAGE,
            ) from None


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _entry(inode: int, name: str, mode: int, data: bytes) -> bytes:
    links = 2 if stat.S_ISDIR(mode) else 1
    named = name.encode() + b"\0"
    numbers = (inode, mode, 0, 0, links, 0, len(data), 0, 0, 0, 0, len(named), 0)
    head = b"070701" + b"".join(b"%08X" % number for number in numbers) + named
    return _padded(head) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % _ALIGNMENT)
