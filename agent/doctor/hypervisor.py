# SPDX-License-Identifier: MIT
"""A VM's cloud-hypervisor: which version it is, and whether the launcher knows it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from credferry.agent.doctor import launcher, probe, questions
from credferry.agent.doctor.finding import hint, ok, problem
from credferry.agent.doctor.questions import Question
from credferry.agent.doctor.refusal import refusal
from credferry.launcher.handoff import HYPERVISOR_PUSHES_SINCE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from credferry.agent.config.model import VmConfig
    from credferry.agent.doctor.chain import Chain
    from credferry.agent.doctor.finding import Finding
    from credferry.agent.doctor.launcher import Wiring

_BEHIND: Final = ("--", "--kernel", "/nonexistent", "--api-socket", "/nonexistent")


def check(chain: Chain, vm: VmConfig) -> Iterator[Finding]:
    """Ask the launcher which cloud-hypervisor the VM has, and whether the launcher knows it."""
    unit = chain.unit(vm)
    found = launcher.wiring(unit)
    if not found.wired or unit["LoadState"] != "loaded":
        return
    asked = _of_wiring(found, unit)
    if asked is None:
        yield problem(
            "vm.hypervisor",
            f"{found.launcher} does not exist",
            vm=vm.name,
            why="the VM cannot start",
            remedy="install credferry where the VM's unit finds it, or name the launcher by its "
            "absolute path",
        )
        return
    changed = _changeable(asked, found)
    if changed is not None:
        each, component, other = changed
        yield hint(
            "vm.hypervisor",
            f"not checked: {other} can change {component}, so doctor does not run {each}",
            vm=vm.name,
            remedy=f"give the program to root: chown root {component}; chmod go-w {component}",
        )
        return
    answer = questions.ask(asked)
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
            f"{asked.program} --explain does not answer like credferry's launcher of this version",
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


def question_of_version(_vm: VmConfig, unit: Mapping[str, Any]) -> Question | None:
    """What `check` asks the launcher about a VM; None if it asks nothing. Raises `UnseenError`."""
    found = launcher.wiring(unit)
    asked = _of_wiring(found, unit) if found.wired else None
    return asked if asked is not None and _changeable(asked, found) is None else None


def version_of(program: str, real: str, user: str) -> str | None:
    """The version of a hypervisor, as the launcher asks for it; None if it gets no answer.

    Raises `UnseenError`.
    """
    answer = questions.ask(Question(program, ("--real", real, "--explain", *_BEHIND), user))
    return _version(answer.stdout) if answer.returncode == 0 else None


def _of_wiring(found: Wiring, unit: Mapping[str, Any]) -> Question | None:
    """What to ask about a VM; None if the launcher does not exist.

    As the VM's user, though both programs belong to root: the launcher asks for the version as at a start.
    """
    program = found.launcher if found.launcher.startswith("/") else shutil.which(found.launcher)
    if program is None:
        return None
    user = unit.get("User") or ""
    if found.file is not None and found.file.name == "vm.toml":
        return Question(program, ("--spec", str(found.file), "--explain"), user, found.directory)
    directory = Path("/") if Path(found.real).is_absolute() else found.directory
    return Question(program, ("--real", found.real, "--explain", *_BEHIND), user, directory)


def _changeable(asked: Question, found: Wiring) -> tuple[Path, Path, str] | None:
    """A program that another user can change, the component of its path that they can change, and who."""
    for each in (Path(asked.program), Path(found.real)):
        if each.is_absolute() and (changed := probe.changeable(each)) is not None:
            return each, *changed
    return None


def _version(answer: str) -> str | None:
    """The hypervisor's version in the launcher's answer; None if the answer is something else."""
    try:
        version = json.loads(answer)["hypervisor_version"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return version if isinstance(version, str) else None
