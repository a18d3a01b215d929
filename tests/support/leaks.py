# SPDX-License-Identifier: MIT
"""Looking for secret values wherever they must not be."""

from __future__ import annotations

import base64
import contextlib
from typing import TYPE_CHECKING
from urllib.parse import quote_from_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from tests.support.host import Host

_ALLOWED = ("/run/secrets.d/", "/run/credentials/")
"""Where values are meant to be: the source, and what PID 1 shows to a unit's own user."""
_CHUNK = 1 << 20


def leaks(host: Host, values: Iterable[bytes]) -> list[str]:
    """Where any of the values is to be seen in a host, in plain, Base64, hexadecimal or URL form.

    Looked through are the arguments and environment of every process, every file that was written since the
    host booted, all of /run, and the text of the journal beside its files.
    """
    forms = [form for value in values for form in _forms(value)]
    return sorted(_leaks(host, forms))


def _leaks(host: Host, forms: list[bytes]) -> Iterator[str]:
    for path in host.path("/proc").glob("[0-9]*"):
        for part in ("cmdline", "environ"):
            if _holds(path / part, forms):
                yield f"/proc/{path.name}/{part}"
    written = host.run("find", "/", "-xdev", "-newer", "/proc/1", "-type", "f", "-print0").stdout
    volatile = host.run("find", "/run", "/tmp", "/dev/shm", "-type", "f", "-print0", check=False).stdout
    for name in {*written.split("\0"), *volatile.split("\0")} - {""}:
        if not name.startswith(_ALLOWED) and _holds(host.path(name), forms):
            yield name
    journal = host.run("journalctl", "--output=export", "--all").stdout.encode(errors="surrogateescape")
    if any(form in journal for form in forms):
        yield "the journal"


def _forms(value: bytes) -> set[bytes]:
    """How a value may look, whatever stands before it: Base64 has three alignments."""
    encoded = {base64.b64encode(b"\0" * shift + value)[4 if shift else 0 : -4] for shift in range(3)}
    urlsafe = {each.translate(bytes.maketrans(b"+/", b"-_")) for each in encoded}
    hexadecimal = {value.hex().encode(), value.hex().upper().encode()}
    return {value, quote_from_bytes(value, safe="").encode(), *encoded, *urlsafe, *hexadecimal}


def _holds(path: Path, forms: list[bytes]) -> bool:
    overlap = max(map(len, forms))
    with contextlib.suppress(OSError), path.open("rb") as file:  # a process that has ended meanwhile
        tail = b""
        while chunk := file.read(_CHUNK):
            if any(form in tail + chunk for form in forms):
                return True
            tail = chunk[-overlap:]
    return False
