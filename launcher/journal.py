# SPDX-License-Identifier: MIT
"""Records for journald, in its native protocol (systemd docs/JOURNAL_NATIVE_PROTOCOL.md).

A VM starts even if the journal is unavailable: the launcher drops the record and reports no error. The agent
uses only `SOCKET` and `serialized`.
"""

from __future__ import annotations

import contextlib

from credferry.launcher.handoff import MESSAGE_ID_LAUNCH_WARNING, MESSAGE_ID_LAUNCHED, PUSH_MANIFEST

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Final

    from credferry.launcher.handoff import Manifest

SOCKET: Final = "/run/systemd/journal/socket"
IDENTIFIER: Final = "credferry-launch"
ERROR: Final = 3
WARNING: Final = 4
INFO: Final = 6
_DIGITS: Final = 16


def fields(manifest: Manifest) -> list[tuple[str, str]]:
    """The fields that identify a generation in each record about it."""
    return [
        ("CREDFERRY_VM", manifest.vm),
        ("CREDFERRY_GENERATION", str(manifest.generation)),
        ("CREDFERRY_RUN", manifest.run),
        ("CREDFERRY_CHANNEL", manifest.delivery.channel.value),
        ("CREDFERRY_DIGEST", manifest.digest[:_DIGITS]),
        *(
            ("CREDFERRY_CREDENTIAL", entry.name)
            for entry in manifest.credentials
            if entry.name != PUSH_MANIFEST
        ),
    ]


def record_launch(manifest: Manifest) -> None:
    """Record that the VM was started with this generation."""
    send(
        f"VM {manifest.vm} was started with generation {manifest.generation}",
        message_id=MESSAGE_ID_LAUNCHED,
        priority=INFO,
        extra=fields(manifest),
    )


def warn(manifest: Manifest, message: str) -> None:
    """Record a warning about a VM that was started."""
    send(
        f"VM {manifest.vm}: {message}",
        message_id=MESSAGE_ID_LAUNCH_WARNING,
        priority=WARNING,
        extra=fields(manifest),
    )


def send(
    message: str,
    *,
    message_id: str,
    priority: int,
    extra: Iterable[tuple[str, str]] = (),
    path: str = SOCKET,
) -> None:
    """Send one record, or drop it if that fails. The caller must pass no field that holds a secret value."""
    record = serialized(
        [
            ("MESSAGE", message),
            ("MESSAGE_ID", message_id),
            ("PRIORITY", str(priority)),
            ("SYSLOG_IDENTIFIER", IDENTIFIER),
            *extra,
        ]
    )
    import socket  # noqa: PLC0415 (takes 2 ms, and before the hypervisor's exec there is seldom a record)

    kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, kind) as peer:
        peer.setblocking(False)
        peer.sendto(record, path)


def serialized(pairs: Iterable[tuple[str, str]]) -> bytes:
    """A record of these fields, as journald's socket takes it."""
    return b"".join(_field(key, value) for key, value in pairs)


def _field(key: str, value: str) -> bytes:
    data = value.encode(errors="backslashreplace")
    if b"\n" not in data:
        return key.encode() + b"=" + data + b"\n"
    return key.encode() + b"\n" + len(data).to_bytes(8, "little") + data + b"\n"
