# SPDX-License-Identifier: MIT
"""A VM's cloud-hypervisor: which version it is, and whether the launcher knows it."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from credferry.agent.doctor import launcher, probe
from credferry.agent.doctor.finding import hint, ok, problem
from credferry.agent.doctor.refusal import refusal
from credferry.launcher.handoff import HYPERVISOR_PUSHES_SINCE

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

    from credferry.agent.config.model import VmConfig
    from credferry.agent.doctor.chain import Chain
    from credferry.agent.doctor.finding import Finding

_BEHIND: Final = ("--", "--kernel", "/nonexistent", "--api-socket", "/nonexistent")


def check(chain: Chain, vm: VmConfig) -> Iterator[Finding]:
    """Ask the launcher which cloud-hypervisor the VM has, and whether the launcher knows it."""
    unit = chain.unit(vm)
    found = launcher.wiring(unit)
    if not found.wired or unit["LoadState"] != "loaded":
        return
    if found.file is not None and found.file.name == "vm.toml":
        asked = ["--spec", str(found.file)]
        behind = []
    else:
        asked = ["--real", found.real]
        behind = [*_BEHIND]
    program = found.launcher if found.launcher.startswith("/") else shutil.which(found.launcher)
    if program is None:
        yield problem(
            "vm.hypervisor",
            f"{found.launcher} does not exist",
            vm=vm.name,
            why="the VM cannot start",
            remedy="install credferry where the VM's unit finds it, or name the launcher by its "
            "absolute path",
        )
        return
    for each in (Path(program), Path(found.real)):
        if each.is_absolute() and (changed := probe.changeable(each)) is not None:
            yield hint(
                "vm.hypervisor",
                f"not checked: {changed[1]} can change {changed[0]}, so doctor does not run {each}",
                vm=vm.name,
                remedy=f"give the program to root: chown root {changed[0]}; chmod go-w {changed[0]}",
            )
            return
    # As the VM's user, though both programs belong to root: the launcher asks for the version as at a start.
    is_same_anywhere = bool(behind) and Path(found.real).is_absolute()
    directory = Path("/") if is_same_anywhere else found.directory
    answer = _explained((program, *asked, "--explain", *behind), unit.get("User") or "", directory)
    if answer.returncode != 0:
        refused = refusal(answer)
        yield problem(
            "vm.hypervisor",
            refused.what or f"{found.launcher} refuses the VM",
            vm=vm.name,
            why="the launcher would refuse the VM's next start",
            remedy=refused.remedy,
        )
        return
    version = _version(answer.stdout)
    if version is None:
        yield problem(
            "vm.hypervisor",
            f"{program} --explain does not answer like credferry's launcher of this version",
            vm=vm.name,
            why="doctor cannot tell whether the VM can start",
            remedy="check what this program is, and that agent and launcher are of the same release",
        )
        return
    major = version.partition(".")[0]
    if vm.live and major.isdecimal() and int(major) < HYPERVISOR_PUSHES_SINCE:
        yield problem(
            "vm.hypervisor.live",
            f"the VM is live, but cloud-hypervisor {version} takes no pushes",
            vm=vm.name,
            why="pushes fail, so each change of the VM's secrets is handled as on_live_failure says",
            remedy=f"install cloud-hypervisor {HYPERVISOR_PUSHES_SINCE} or later, or set live = false",
        )
        return
    yield ok("vm.hypervisor", f"cloud-hypervisor {version}: the launcher knows its options", vm.name)


def version_of(program: str, real: str, user: str) -> str | None:
    """The version of a hypervisor, as the launcher asks for it; None if it gets no answer.

    Raises `UnseenError`.
    """
    answer = _explained((program, "--real", real, "--explain", *_BEHIND), user, Path("/"))
    return _version(answer.stdout) if answer.returncode == 0 else None


@cache
def _explained(argv: tuple[str, ...], user: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """The launcher's answer, asked once for all VMs that have the same. Raises `UnseenError`."""
    return probe.run(*argv, user=user, directory=directory)


def _version(answer: str) -> str | None:
    """The hypervisor's version in the launcher's answer; None if the answer is something else."""
    try:
        version = json.loads(answer)["hypervisor_version"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return version if isinstance(version, str) else None
