# SPDX-License-Identifier: MIT
"""Environment files of a VM's unit: root's commands in the unit get these variables, too."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from credferry.agent.doctor import probe
from credferry.agent.doctor.finding import Finding, ok, problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from credferry.agent.config.model import VmConfig
    from credferry.agent.doctor.chain import Chain

_CHECK: Final = "vm.environment"


def check(chain: Chain, vm: VmConfig) -> Iterator[Finding]:
    """Whether root alone can change each file of ``EnvironmentFile=``.

    credferry's drop-in has root run commands (``ExecStartPre=+``). With ``LD_PRELOAD`` in such a file, root
    runs the code of whoever wrote the file.
    """
    unit = chain.unit(vm)
    files = [path for path, _ in unit.get("EnvironmentFiles", ())] if unit["LoadState"] == "loaded" else []
    found = {}
    for path in files:
        for each in (Path(path), *Path("/").glob(path.lstrip("/"))):  # systemd takes patterns
            if (other := probe.changeable(each)) is not None:
                found[path] = other
    for path, (place, who) in found.items():
        yield problem(
            _CHECK,
            f"{who} can change {place}, and {vm.unit} reads EnvironmentFile={path}",
            vm=vm.name,
            why="root's commands in the unit get these variables: whoever writes LD_PRELOAD there can do "
            "everything that root can",
            remedy="give the file, and all directories above it, to root; or let the program read it",
        )
    if files and not found:
        yield ok(_CHECK, f"only root can change the environment files of {vm.unit}", vm.name)
