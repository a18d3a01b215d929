# SPDX-License-Identifier: MIT
"""Sealing: in memory and durably, against a process each and against the cipher alone."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from benchmarks.results import CREDFERRY, Row, row
from credferry.agent.sealing.credential import seal
from credferry.agent.sealing.keys import CredentialKey
from credferry.agent.store.generations import Store
from credferry.launcher.handoff import Delivery, Kind, Manifest, ManifestEntry, Secret
from tests.support.cache import cache_directory

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.bed import Bed

MEMORY = "sealing in memory, a credential"
DURABLE = "sealing durably, a generation"
CIPHER = "AES-256-GCM alone"
CREDS = "systemd-creds"
WRITES = "write, fsync, rename alone"

# Each line is the clock once another one is sealed; the shell's own part is a fork.
_LOOP = """\
cd /tmp; umask 077; head -c "$1" /dev/urandom >plain
echo "$EPOCHREALTIME"
for ((i = 0; i < $2; i++)); do
    systemd-creds encrypt --quiet --with-key=host --name=credential plain sealed 2>/dev/null
    echo "$EPOCHREALTIME"
done
"""


def measure(bed: Bed, *, quick: bool) -> list[Row]:
    """Measure both."""
    return [*_in_memory(bed, 10 if quick else 60), *_durable(5 if quick else 40)]


def _in_memory(bed: Bed, times: int) -> list[Row]:
    key, rows = CredentialKey(os.urandom(4096)), []
    cipher = AESGCM(key.aes_key)
    for size in (32, 4096):
        value, case = os.urandom(size), f"{size:,} bytes"
        sealed = _each(times, lambda value=value: seal(value, name="credential", key=key))  # type: ignore[misc]  # a default binds it
        alone = _each(times, lambda value=value: cipher.encrypt(os.urandom(12), value, None))  # type: ignore[misc]  # a default binds it
        clock = bed.host.run("bash", "-c", _LOOP, "loop", str(size), str(times)).stdout.split()
        seconds = [float(moment) for moment in clock]
        creds = [(after - before) * 1e6 for before, after in pairwise(seconds)]
        for name, values in ((CREDFERRY, sealed), (CIPHER, alone), (CREDS, creds)):
            rows.append(row(MEMORY, case, name, "µs", [values[::2], values[1::2]]))
            sys.stderr.write(f"sealing {case}: {name}: {rows[-1].middle:.1f} µs\n")
    return rows


def _each(times: int, work: Callable[[], object], batch: int = 200) -> list[float]:
    """Microseconds of one, each the mean of a batch: one alone is as short as asking the clock."""
    values = []
    for _ in range(times):
        began = time.perf_counter()
        for _ in range(batch):
            work()
        values.append((time.perf_counter() - began) / batch * 1e6)
    return values


def _durable(times: int) -> list[Row]:
    rows = []
    for count in (1, 10, 100):
        # On the disk, and not on the throwaway host's tmpfs.
        top = Path(tempfile.mkdtemp(prefix="bench.", dir=cache_directory() / "tmp"))
        try:
            sealed, alone = _generations(top, count, times)
        finally:
            shutil.rmtree(top)
        case = f"{count} credential{'s' if count > 1 else ''}"
        for name, values in ((CREDFERRY, sealed), (WRITES, alone)):
            rows.append(row(DURABLE, case, name, "ms", [values[::2], values[1::2]]))
            sys.stderr.write(f"generation of {case}: {name}: {rows[-1].middle:.2f} ms\n")
    return rows


def _generations(top: Path, count: int, times: int) -> tuple[list[float], list[float]]:
    store = Store(top / "state", CredentialKey(os.urandom(4096)))
    values = {f"C{number}": Secret(os.urandom(32)) for number in range(count)}
    entries = tuple(ManifestEntry(name, Kind.PLAIN, "0" * 16) for name in values)
    bare = top / "bare"
    bare.mkdir()
    blob = seal(os.urandom(32), name="credential", key=store.key)
    sealed, alone = [], []
    for number in range(1, times + 2):
        manifest = Manifest("web", number, "0" * 64, "0" * 32, Delivery(), entries)
        began = time.perf_counter()
        store.write(manifest, values)
        sealed.append((time.perf_counter() - began) * 1000)
        began = time.perf_counter()
        _write_alone(bare, blob, count + 1)
        alone.append((time.perf_counter() - began) * 1000)
    return sealed[1:], alone[1:]  # the first makes the directories


def _write_alone(directory: Path, blob: bytes, count: int) -> None:
    """So many files written, fsynced and renamed, and the directory fsynced once."""
    for number in range(count):
        path = f"{directory}/{number}"
        file = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.write(file, blob)
        os.fsync(file)
        os.close(file)
        os.rename(f"{path}.new", path)  # noqa: PTH104 (bare)
    file = os.open(directory, os.O_RDONLY)
    os.fsync(file)
    os.close(file)
