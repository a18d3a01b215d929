# SPDX-License-Identifier: MIT
"""How many VMs are restarted for one changed secret among many, and for a generation that is the same."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from benchmarks.bed import INSIDE, World
from benchmarks.contenders import Contender, Credferry, PathUnit, Polling, ShellAgent
from benchmarks.results import row

if TYPE_CHECKING:
    from benchmarks.bed import Bed
    from benchmarks.results import Row

RESTARTS = "VMs restarted, of ten"
VMS = 10
_SECONDS = 1.8


class RestartUnits(Contender):
    """sops-nix's rule: in an activation, restart the units that a person wrote beside each changed secret.

    Without an activation (a secret rotated by anything else) it does nothing at all.
    """

    name = "sops-nix restartUnits"

    def start(self, bed: Bed, world: World) -> None:
        """Remember what is published."""


class RestartAll(Contender):
    """A restart of every VM with each publication."""

    name = "restart all"

    def start(self, bed: Bed, world: World) -> None:
        """Nothing."""


def measure(bed: Bed, *, quick: bool) -> list[Row]:
    """Count what PID 1 starts in the seconds after each."""
    world = World(100, VMS, light=VMS)
    bed.lay_out(world)
    rows = []
    contenders = [Credferry(), RestartUnits(), RestartAll(), ShellAgent(), Polling(), PathUnit()]
    for contender in contenders:
        contender.begin(bed, world)
        for what, change in (("one secret changed", 1), ("the same again", 0)):
            counts: list[float] = []
            for _ in range(1 if quick else 2 if change else 1):
                contender.rest(bed, world)
                bed.drive("rotate", change=change, vms=[], unit=world.unit, seconds=0)
                if isinstance(contender, RestartUnits | RestartAll):
                    how = "all" if isinstance(contender, RestartAll) else "changed"
                    bed.host.run(f"{INSIDE}/activation.sh", how, world.unit)
                counts.append(len(bed.drive("starts", seconds=_SECONDS)))
            rows.append(row(RESTARTS, what, contender.name, "VMs", [counts]))
            sys.stderr.write(f"{what}: {contender.name}: {counts}\n")
        contender.end(bed)
    return rows
