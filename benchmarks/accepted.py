# SPDX-License-Identifier: MIT
"""From the symlink's rename to systemd's beginning of the restart.

The end is when systemd itself has the unit leave "active", which it does once it has accepted the job and
taken it from its queue: its own clock, and nobody who listens costs anybody time.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from benchmarks.bed import World, words
from benchmarks.contenders import Contender, Credferry, Limit, PathUnit, Polling, ShellAgent
from benchmarks.results import row

if TYPE_CHECKING:
    from benchmarks.bed import Bed
    from benchmarks.results import Row

ONE = "accepted, one secret changed"
ALL = "accepted, all secrets changed"
IN_TURN = "accepted, all secrets changed, last VM"

# Secrets, VMs, and rotations of each series: along the secrets, along the VMs, and both.
FULL = [
    *((1, 1, 20), (10, 1, 50), (100, 1, 15), (100, 10, 15), (100, 100, 15)),
    *((1000, 100, 12), (1000, 1000, 10), (10000, 1000, 8)),
]
QUICK = [(10, 1, 8), (100, 10, 5)]
ROUNDS = 2


def case(world: World) -> str:
    """How tables name it."""
    secrets, vms = ("s" if number > 1 else "" for number in (world.secrets, world.vms))
    return f"{world.secrets:,} secret{secrets}, {world.vms:,} VM{vms}"


def measure(bed: Bed, *, quick: bool) -> list[Row]:
    """Measure all sizes, each contender twice in turn: the second series tells how much is noise."""
    rows: list[Row] = []
    for secrets, vms, count in QUICK if quick else FULL:
        world = World(secrets, vms)
        bed.lay_out(world)
        contenders = [Credferry(), Limit(), ShellAgent(), PathUnit(), Polling()]
        rows += _series(bed, world, contenders, count)
    rows += _all_changed(bed, quick=quick)
    return rows


def _series(bed: Bed, world: World, contenders: list[Contender], count: int) -> list[Row]:
    taken: dict[str, list[list[float]]] = {each.name: [] for each in contenders}
    missed, stale = dict.fromkeys(taken, 0), dict.fromkeys(taken, 0)
    for _ in range(ROUNDS):
        for contender in contenders:
            # What waits by design would fill the run with waiting.
            times = 4 if isinstance(contender, PathUnit | Polling) else count
            contender.begin(bed, world)
            bed.rotate(world, 1, contender.patience)  # the first is not as the others
            values: list[float] = []
            for _ in range(times):
                contender.rest(bed, world)
                contender.wait()
                rotation = bed.rotate(world, 1, contender.patience)
                values += rotation.accepted.values()
                missed[contender.name] += not rotation.accepted
                stale[contender.name] += rotation.stale
            contender.end(bed)
            taken[contender.name].append(values)
            _say(f"{case(world)}: {contender.name}: {words(values)}")
    return [
        row(ONE, case(world), name, "ms", rounds, missed=missed[name], stale=stale[name])
        for name, rounds in taken.items()
    ]


def _all_changed(bed: Bed, *, quick: bool) -> list[Row]:
    secrets, vms, times = (100, 10, 2) if quick else (1000, 10, 4)
    world = World(secrets, vms, light=vms)
    bed.lay_out(world, f"concurrency = {vms}")
    rows: list[Row] = []
    contenders: list[Contender] = [Credferry(), ShellAgent()]
    for contender in contenders:
        contender.begin(bed, world)
        first, last = [], []
        for _ in range(times):
            contender.rest(bed, world)
            rotation = bed.rotate(world, secrets, contender.patience)
            if len(rotation.accepted) == vms:
                first.append(min(rotation.accepted.values()))
                last.append(max(rotation.accepted.values()))
        contender.end(bed)
        _say(f"all of {case(world)}: {contender.name}: first {words(first)}, last {words(last)}")
        missed = times - len(first)
        rows.append(row(ALL, case(world), contender.name, "ms", [first[::2], first[1::2]], missed=missed))
        rows.append(row(IN_TURN, case(world), contender.name, "ms", [last[::2], last[1::2]], missed=missed))
    return rows


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
