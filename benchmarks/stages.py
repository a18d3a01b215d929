# SPDX-License-Identifier: MIT
"""Where the agent's time goes between the rename and the restart: a profile by the clock."""

from __future__ import annotations

import sys
from collections import defaultdict
from typing import TYPE_CHECKING

from benchmarks.accepted import case
from benchmarks.bed import AGENT, INSIDE, World
from benchmarks.contenders import Credferry
from benchmarks.results import CREDFERRY, Row, row

if TYPE_CHECKING:
    from benchmarks.bed import Bed

_FILE = "/run/credferry/stages"
_DROP_IN = f"""\
[Service]
Environment=STAGES={_FILE}
ExecStart=
ExecStart={sys.executable} -I {INSIDE}/staged_agent.py
"""


def measure(bed: Bed, *, quick: bool) -> list[Row]:
    """When, after the rename, each place is first entered and left, up to systemd's beginning."""
    drop_in = f"/etc/systemd/system/{AGENT}.d/60-stages.conf"
    bed.host.write(drop_in, _DROP_IN)
    rows = []
    for secrets, vms in ((10, 1),) if quick else ((10, 1), (10000, 1000)):
        world, contender = World(secrets, vms), Credferry()
        bed.lay_out(world)
        contender.begin(bed, world)
        seen: dict[str, list[float]] = defaultdict(list)
        for _ in range(5 if quick else 20):
            contender.rest(bed, world)
            at = bed.drive("rotate", change=1, vms=["v0"], unit=world.unit, seconds=10)
            contender.rest(bed, world)
            for place, moment in _first(_lines(bed), at["at"], at["vms"]["v0"]["accepted"]).items():
                seen[place].append((moment - at["at"]) / 1e6)
        contender.end(bed)
        ordered = sorted(seen.items(), key=lambda item: sorted(item[1])[len(item[1]) // 2])
        measure_name = f"after the rename, {case(world)}"
        rows += [row(measure_name, place, CREDFERRY, "ms", [values]) for place, values in ordered]
    bed.host.path(drop_in).unlink()
    bed.host.run("systemctl", "daemon-reload")
    return rows


def _lines(bed: Bed) -> list[str]:
    file = bed.host.path(_FILE)
    file.unlink(missing_ok=True)
    # The agent's main thread takes the signal when it is woken, by itself or by it.
    bed.host.run("systemctl", "kill", "--kill-whom=main", "--signal=SIGUSR1", AGENT)
    bed.host.wait(file.exists, 90, "the stages")
    return file.read_text(encoding="utf-8").splitlines()


def _first(lines: list[str], begin: int, end: int) -> dict[str, int]:
    """The first entry of each place, and its end, between two moments; the last is the second."""
    found: dict[str, int] = {}
    for line in lines:
        clock, _, place = line.split(" ", 2)
        if begin <= int(clock) <= end:
            found.setdefault(place, int(clock))
    return {**found, "systemd begins": end}
