# SPDX-License-Identifier: MIT
"""What it costs to wait for a change, and to come up."""

from __future__ import annotations

import sys
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.bed import AGENT, CONTENDER, INSIDE, World
from benchmarks.contenders import Credferry, ShellAgent
from benchmarks.results import CREDFERRY, POLLING, SHELL, Row, row

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.bed import Bed

WAKE_UPS = "idle: wake-ups a minute"
PROCESSOR = "idle: seconds of processor an hour"
MEMORY = "idle: resident memory"
THREADS = "idle: threads and processes"
READY = "from start to ready"
_POLLING = "bench-polling.service"


@dataclass(frozen=True, slots=True)
class Sample:
    """What a unit's processes have used so far, and hold now."""

    wake_ups: dict[str, int]
    """Voluntary context switches, by the thread's name and number."""
    microseconds: int
    kibibytes: int
    processes: int


def measure(bed: Bed, *, quick: bool) -> list[Row]:
    """Let the agent, the shell agent and the polling script wait beside each other on the same host."""
    world, seconds = World(100, 10), 15 if quick else 90
    case = "100 secrets, 10 VMs"
    bed.lay_out(world)
    ShellAgent().begin(bed, world)
    Credferry().begin(bed, world)
    ready = [_ready(bed) for _ in range(3 if quick else 10)]
    polling = f"--unit={_POLLING.removesuffix('.service')}"
    bed.host.run("systemd-run", "--quiet", polling, "--collect", f"{INSIDE}/polling.sh", world.unit, "1")
    for unit in (CONTENDER, AGENT, _POLLING):
        bed.rest(unit)
    time.sleep(3)  # what follows a start is over then
    units = {CREDFERRY: AGENT, SHELL: CONTENDER, POLLING: _POLLING}
    before = {name: _sample(bed, unit) for name, unit in units.items()}
    began = time.monotonic()
    time.sleep(seconds)
    took = time.monotonic() - began
    rows = [row(READY, case, CREDFERRY, "ms", [ready[::2], ready[1::2]])]
    for name, unit in units.items():
        then, now = before[name], _sample(bed, unit)
        woken = Counter(now.wake_ups)
        woken.subtract(then.wake_ups)
        a_minute = sum(woken.values()) / took * 60
        an_hour = (now.microseconds - then.microseconds) / took * 3600 / 1e6
        sys.stderr.write(f"idle: {name}: {dict(woken.most_common(6))}\n")
        rows += [
            row(WAKE_UPS, case, name, "", [[a_minute]]),
            row(PROCESSOR, case, name, "s", [[an_hour]]),
            row(MEMORY, case, name, "MiB", [[now.kibibytes / 1024]]),
            row(THREADS, case, name, "", [[now.processes]]),
        ]
    bed.stop(AGENT, CONTENDER, _POLLING)
    return rows


def _ready(bed: Bed) -> float:
    """Milliseconds from systemd's start of the agent to its word that it is ready."""
    bed.host.run("systemctl", "reset-failed", AGENT)  # and how often it was started lately
    bed.host.run("systemctl", "restart", AGENT)
    unit = bed.host.unit(AGENT)
    active, began = unit["ActiveEnterTimestampMonotonic"], unit["InactiveExitTimestampMonotonic"]
    return (int(active) - int(began)) / 1000


def _sample(bed: Bed, unit: str) -> Sample:
    group = bed.host.path(f"/sys/fs/cgroup/system.slice/{unit}")
    pids = bed.host.run("cat", f"/sys/fs/cgroup/system.slice/{unit}/cgroup.procs").stdout.split()
    woken: dict[str, int] = {}
    kibibytes = 0
    for pid in pids:
        # A process that ended meanwhile took its count with it: what a script starts is not counted.
        woken |= wake_ups(bed, pid)
        kibibytes += int(_status(bed.host.path(f"/proc/{pid}"))["VmRSS"].split()[0])
    used = int((group / "cpu.stat").read_text(encoding="ascii").split()[1])
    return Sample(woken, used, kibibytes, len(woken))


def wake_ups(bed: Bed, pid: str) -> dict[str, int]:
    """How often each thread of a process has waited so far, by its name and number."""
    found = {}
    for task in bed.host.path(f"/proc/{pid}/task").iterdir():
        status = _status(task)
        found[f"{status['Name']}/{task.name}"] = int(status["voluntary_ctxt_switches"])
    return found


def _status(directory: Path) -> dict[str, str]:
    lines = (directory / "status").read_text(encoding="utf-8").splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}
