# SPDX-License-Identifier: MIT
"""How the time and memory of one look grow with secrets and VMs, against reading the files alone."""

from __future__ import annotations

import json
import subprocess
import sys

from benchmarks.results import CREDFERRY, Row, row

TIME = "one look, one secret changed"
MEMORY = "memory of a look"
READING = "read and HMAC alone"
SECRETS = "the secrets themselves"

# Secrets, VMs, bytes of a secret.
FULL = [
    *((1, 1, 32), (10, 1, 32), (100, 10, 32), (1000, 10, 32), (1000, 100, 32), (1000, 1000, 32)),
    *((10000, 100, 32), (10000, 1000, 32), (10000, 1000, 1024), (100000, 5000, 32)),
]
LARGEST = 100000
"""Secrets of the case that is measured once: it takes as long as all others together."""
QUICK = [(10, 1, 32), (100, 10, 32), (1000, 100, 32)]


def measure(*, quick: bool) -> list[Row]:
    """Measure all sizes, each in a process of its own, the two loops in turn."""
    times, memory = [], []
    for secrets, vms, size in QUICK if quick else FULL:
        each = 2 if secrets >= LARGEST else 10 if quick or secrets >= 10000 else 40
        command = [sys.executable, "-m", "benchmarks.look", *map(str, (secrets, vms, size, each))]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        case = f"{secrets:,} secrets of {size:,} bytes, {vms:,} VM{'s' if vms > 1 else ''}"
        for name, values in ((CREDFERRY, found["look"]), (READING, found["floor"])):
            times.append(row(TIME, case, name, "ms", [values[::2], values[1::2]]))
        memory.append(row(MEMORY, case, CREDFERRY, "KiB", [[found["grown"] / 1024]]))
        memory.append(row(MEMORY, case, SECRETS, "KiB", [[found["bytes"] / 1024]]))
        sys.stderr.write(f"{case}: {times[-2].middle:.1f} ms for {times[-1].middle:.1f} ms\n")
    return [*times, *memory]
