# SPDX-License-Identifier: MIT
"""From the symlink's rename to the exec of the new hypervisor's process, with what stands before it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from benchmarks.accepted import case
from benchmarks.bed import HYPERVISOR, INSIDE, World, words
from benchmarks.contenders import Contender, Credferry, Limit, PathUnit, Polling, ShellAgent
from benchmarks.results import row

if TYPE_CHECKING:
    from benchmarks.bed import Bed
    from benchmarks.results import Row

EXECUTED = "hypervisor executed, one secret changed"
_ARGUMENTS = "--cpus boot=1 --kernel /usr/lib/credferry-test/kernel --memory size=64M --api-socket vm.sock"
_BARE = f"{INSIDE}/hypervisor {_ARGUMENTS}"
_LAUNCHER = f"/usr/bin/credferry-launch --hypervisor-version 53.0 --real {INSIDE}/hypervisor -- {_ARGUMENTS}"
_WRAPPER = f"{INSIDE}/wrapper.sh command {_BARE}"
ROUNDS = 2
# Secrets, VMs, rotations.
_FULL = [(1, 1, 8), (10, 1, 12), (100, 10, 8), (1000, 100, 8), (1000, 1000, 6), (10000, 1000, 6)]
_QUICK = [(10, 1, 4)]


class _WithLauncher(Credferry):
    def command(self, world: World) -> str:  # noqa: ARG002 (the base's)
        return f"ExecStart=\nExecStart={_LAUNCHER}\n"


class _WithWrapper(ShellAgent):
    def command(self, world: World) -> str:  # noqa: ARG002 (the base's)
        return f"ExecStart=\nExecStart={_WRAPPER}\n"


class _BareLimit(Limit):
    def command(self, world: World) -> str:  # noqa: ARG002 (the base's)
        return f"ExecStart=\nExecStart={_BARE}\n"


class _WithWrapperPath(PathUnit):
    def command(self, world: World) -> str:  # noqa: ARG002 (the base's)
        return f"ExecStart=\nExecStart={_WRAPPER}\n"


class _WithWrapperPolling(Polling):
    def command(self, world: World) -> str:  # noqa: ARG002 (the base's)
        return f"ExecStart=\nExecStart={_WRAPPER}\n"


def measure(bed: Bed, *, quick: bool) -> list[Row]:
    """Measure a few sizes, each contender twice in turn."""
    rows: list[Row] = []
    for secrets, vms, count in _QUICK if quick else _FULL:
        world = World(secrets, vms, unit=HYPERVISOR)
        bed.host.run("mkdir", "-p", "/run/bench/v0")
        bed.lay_out(world)
        contenders: list[Contender] = [
            *(_WithLauncher(), _BareLimit(), _WithWrapper(), _WithWrapperPath(), _WithWrapperPolling()),
        ]
        taken: dict[str, list[list[float]]] = {each.name: [] for each in contenders}
        missed = dict.fromkeys(taken, 0)
        for _ in range(ROUNDS):
            for contender in contenders:
                contender.begin(bed, world)
                bed.rotate(world, 1, contender.patience)  # the first is not as the others
                values: list[float] = []
                for _ in range(min(count, 4) if isinstance(contender, PathUnit | Polling) else count):
                    contender.rest(bed, world)
                    bed.rest(world.unit.format("v0"))
                    contender.wait()
                    rotation = bed.rotate(world, 1, contender.patience)
                    values += rotation.executed.values()
                    missed[contender.name] += not rotation.executed
                contender.end(bed)
                taken[contender.name].append(values)
                sys.stderr.write(f"exec, {case(world)}: {contender.name}: {words(values)}\n")
        rows += [
            row(EXECUTED, case(world), name, "ms", rounds, missed=missed[name])
            for name, rounds in taken.items()
        ]
    return rows
