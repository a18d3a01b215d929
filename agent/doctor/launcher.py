# SPDX-License-Identifier: MIT
"""The launcher: whether the VM starts it, whether it knows the hypervisor, and what runs now."""

from __future__ import annotations

import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from credferry.agent.doctor import probe
from credferry.agent.doctor.finding import UnseenError, hint, ok, problem
from credferry.launcher.handoff import Channel

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from credferry.agent.config.model import VmConfig
    from credferry.agent.doctor.chain import Chain
    from credferry.agent.doctor.finding import Finding

_LAUNCHER: Final = "credferry-launch"
_SCRIPT: Final = "microvm-run"
_MICROVMS: Final = Path("/var/lib/microvms")
_WORK: Final = "work"
_PROGRAM: Final = re.compile(
    r"(?:^|(?<=[\s\"']))((?:/[\w.+@-]+)*/?cloud-hypervisor)(?=[\s\"'])", re.MULTILINE
)
_REAL: Final = re.compile(r"--real[ =]([\"']?)(\S+?)\1(?=\s)")
_LAUNCHED_BY: Final = re.compile(rf"((?:/[\w.+@-]+)*/)?{_LAUNCHER}\b")


@dataclass(frozen=True, slots=True)
class Wiring:
    """How a VM's unit starts its hypervisor, as ``file`` says. ``text`` is all of its text that was read."""

    wired: bool | None
    """Whether the unit starts the launcher; None if that cannot be seen."""
    file: Path | None
    text: str
    real: str = ""
    launcher: str = ""
    bare: str = ""
    """The hypervisor's program, if it is started without the launcher."""
    directory: Path = Path("/")


def wiring(unit: Mapping[str, Any]) -> Wiring:
    """Follow a unit's command: a spec, microvm.nix's script, or a wrapper. Raises `UnseenError`."""
    command = "\n".join(" ".join(argv) for argv in probe.command_lines(unit))
    directory = Path(unit.get("WorkingDirectory", "").lstrip("-!") or "/")
    if directory.name == _WORK and directory.parent.parent == _MICROVMS:
        directory = directory.parent  # this directory is root's; the VM's user has links to it
    spec = directory / "current/vm.toml"
    text = probe.text_of(spec)
    if text is not None and f"{_LAUNCHER} --spec" in command:
        found = re.search(r'^hypervisor\s*=\s*"([^"]+)"', text, re.MULTILINE)
        return Wiring(True, spec, text, found[1] if found else "", _LAUNCHER, directory=directory)
    script = directory / "current/bin" / _SCRIPT
    text = probe.text_of(script)
    if text is None:
        script, text = Path(unit.get("FragmentPath", "/")), command + "\n"
    # A wrapper replaces the hypervisor's binary, under the same name.
    texts = [text, *(_script(Path(each)) for each in _PROGRAM.findall(text) if each.startswith("/"))]
    for each in texts:
        by, real = _LAUNCHED_BY.search(each), _REAL.search(each)
        if by is not None and real is not None:
            return Wiring(True, script, text, real[2], by[0], directory=directory)
    bare = _PROGRAM.search(text)
    return Wiring(False if bare else None, script, text, bare=bare[1] if bare else "", directory=directory)


def check(chain: Chain, vm: VmConfig) -> Iterator[Finding]:
    """Whether the VM's command goes through the launcher."""
    unit = chain.unit(vm)
    if unit["LoadState"] != "loaded":
        return
    found = wiring(unit)
    if found.file is not None and found.file.name == _SCRIPT and not found.file.stat().st_mode & 0o111:
        changed = probe.changeable(found.file)
        yield problem(
            "vm.launcher.mode",
            f"{found.file} is not executable",
            vm=vm.name,
            why="the VM cannot start",
            remedy="make it executable" if changed is None else f"check what {changed[1]} put there",
            # If another user could choose the file, root must not run chmod on it.
            commands=[f"chmod a+rx {shlex.quote(str(found.file.resolve()))}"] if changed is None else (),
        )
    if found.wired:
        yield ok("vm.launcher", f"{found.file} starts the VM through {found.launcher}", vm.name)
    elif found.wired is None:
        yield hint(
            "vm.launcher",
            f"doctor finds no cloud-hypervisor in what {vm.unit} starts",
            vm=vm.name,
            why="doctor cannot tell whether the VM gets its credentials",
            remedy=f"make the unit start {_LAUNCHER} --real PATH -- ARGUMENTS in place of cloud-hypervisor",
        )
    else:
        yield problem(
            "vm.launcher",
            f"{found.file} starts {found.bare} without the launcher",
            vm=vm.name,
            why="the guest gets no credentials, and the agent cannot tell what the VM runs with",
            remedy="put the launcher in the hypervisor's place; with microvm.nix: "
            "microvm.cloud-hypervisor.package",
            commands=_rewire(vm, found),
        )


def check_invocation(chain: Chain, vm: VmConfig) -> Iterator[Finding]:
    """Whether the VM that runs now was started by the launcher."""
    observed, _ = chain.seen(vm)
    unit = observed.unit
    if unit is None or not unit.is_active:
        return
    runs = observed.runs
    if observed.hint is not None and runs is not None:
        name = _process_name(chain.unit(vm).get("MainPID", 0))
        by = (
            "as root's record of its start shows"
            if observed.evidence is not None
            else "but no record of its start was kept"
        )
        said = f"{vm.unit} runs on generation {runs.generation}, {by}; process {name}"
        yield ok("vm.invocation", said, vm.name)
    elif vm.channel is Channel.DIRECTORY:
        yield hint(
            "vm.invocation",
            f"there is no record of the start of {vm.unit}",
            vm=vm.name,
            why="the agent assumes that it runs what was sealed when it started",
            remedy="correct the other findings; the next start leaves a record",
        )
    elif unit.active_seconds > chain.config.rollout.stamp_seconds:
        yield problem(
            "vm.invocation",
            f"{vm.unit} runs, but the launcher did not start it",
            vm=vm.name,
            why="the agent cannot tell which secrets the VM runs with",
            remedy="correct the other findings of this VM; then restart it",
            commands=[f"systemctl restart {shlex.quote(vm.unit)}"],
        )
    else:
        yield hint(
            "vm.invocation",
            f"{vm.unit} has just started: its launcher has not reported yet",
            vm=vm.name,
            remedy="run doctor again in a few seconds",
        )


def _script(path: Path) -> str:
    """A wrapper's text; empty for a binary, and for a file that cannot be read."""
    try:
        text = probe.text_of(path) or ""
    except UnseenError:
        return ""
    return text if text.startswith("#!") else ""


def _rewire(vm: VmConfig, found: Wiring) -> tuple[str, ...]:
    """Commands that put the launcher before the hypervisor; none if the script cannot be edited."""
    real = found.bare if found.bare.startswith("/") else shutil.which(found.bare)
    file = found.file.resolve() if found.file is not None else None
    if file is None or real is None or file.name != _SCRIPT or file.is_relative_to("/nix/store"):
        return ()
    change = f"s|{re.escape(found.bare)} |{_LAUNCHER} --real {real} -- |"
    return (
        f"sed -i {shlex.quote(change)} {shlex.quote(str(file))}",
        f"systemctl try-restart {shlex.quote(vm.unit)}",
    )


def _process_name(pid: int) -> str:
    try:
        text = probe.text_of(Path(f"/proc/{pid}/cmdline"))
    except UnseenError:
        text = None
    return (text or "unknown").partition("\0")[0]
