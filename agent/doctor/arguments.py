# SPDX-License-Identifier: MIT
"""Checks whether the launcher would refuse a VM's cloud-hypervisor arguments at the VM's next start.

The launcher itself judges them (``credferry-launch --check``). The arguments come from the VM's script,
wrapper or spec, which are read as data. The doctor runs only programs that root alone can change.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from credferry.agent.doctor import hypervisor, launcher, probe, questions, shell
from credferry.agent.doctor.finding import UnseenError, hint, ok, problem
from credferry.agent.doctor.questions import Question
from credferry.agent.doctor.refusal import refusal
from credferry.launcher.errors import Exit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from credferry.agent.config.model import VmConfig
    from credferry.agent.doctor.chain import Chain
    from credferry.agent.doctor.finding import Finding

    _Trust = Callable[[Path], Path]
    """Returns where a path leads. Raises `UnseenError` if the target must not be read or run."""

_CHECK: Final = "vm.arguments"
_LAUNCHER: Final = "credferry-launch"
_STARTS_SPEC: Final = re.compile(rf"((?:/[\w.+@-]+)*/?{_LAUNCHER}) --spec\b")
_VERSION: Final = "--hypervisor-version"
_OWN: Final = frozenset({"--real", _VERSION, "--vm"})
_DEFAULT_HYPERVISOR: Final = "/usr/bin/cloud-hypervisor"
"""The hypervisor of a spec that names none."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The launcher's verdict on the arguments in a file. ``refusal`` is empty if it accepts them."""

    file: str
    refusal: str = ""
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class _Call:
    """How the VM starts the launcher: ``own`` are its arguments, ``argv`` those of cloud-hypervisor."""

    program: str
    own: tuple[str, ...]
    argv: tuple[str, ...] | None = None
    real: str = ""
    """The hypervisor whose version the launcher would ask for; empty if ``own`` has the version."""


def check(chain: Chain, vm: VmConfig) -> Iterator[Finding]:
    """Whether the launcher would accept the VM's arguments."""
    unit = chain.unit(vm)
    if unit["LoadState"] != "loaded":
        return
    try:
        verdict = judge(vm, unit)
    except UnseenError as error:
        yield hint(
            _CHECK,
            f"cannot tell whether the launcher accepts the VM's arguments: {error}",
            vm=vm.name,
            remedy=f"run the check by hand: {_LAUNCHER} --check {' '.join(assumed(vm))} --real PATH -- "
            "ARGUMENTS",
        )
        return
    if verdict is None:
        return
    if not verdict.refusal:
        yield ok(_CHECK, f"the launcher accepts the arguments of {verdict.file}", vm.name)
        return
    yield problem(
        _CHECK,
        f"{verdict.file}: {verdict.refusal}",
        vm=vm.name,
        why="the launcher refuses these arguments: the VM's next start fails, and the VM then stays down",
        remedy=verdict.remedy,
    )


def judge(vm: VmConfig, unit: Mapping[str, Any]) -> Verdict | None:
    """The launcher's verdict on what a VM's unit starts; None if the unit starts no launcher.

    Raises `UnseenError` if there is no verdict; the text says why.
    """
    found = _of_vm(vm, unit)
    return _verdict(*found) if found is not None else None


def judge_script(vm: VmConfig, script: Path) -> Verdict:
    """The launcher's verdict on a microvm.nix script that the caller names.

    For a caller other than root, this function does not check who can change the files: while NixOS builds a
    host, files of the store may seem to belong to nobody. The caller then must trust them. Raises
    `UnseenError`.
    """
    trust = _roots if probe.is_root() else _target
    return _verdict(str(script), _question(vm, _of_script(script.absolute(), trust), trust))


def question_of_arguments(vm: VmConfig, unit: Mapping[str, Any]) -> Question | None:
    """What `judge` asks the launcher about a VM; None if its unit starts none. Raises `UnseenError`."""
    found = _of_vm(vm, unit)
    return found[1] if found is not None else None


def assumed(vm: VmConfig) -> tuple[str, ...]:
    """The options of ``--check`` that pass on a VM's configuration."""
    kinds = ",".join(f"{name}={vm.kind(name).value}" for name in vm.credentials)
    return (
        f"--channel={vm.channel.value}",
        f"--kinds={kinds}",
        f"--guest-systemd={vm.guest_systemd}",
        *(["--initrd"] if vm.initrd else ()),
        *(["--plaintext-in-argv"] if vm.plaintext_in_argv else ()),
    )


def _of_vm(vm: VmConfig, unit: Mapping[str, Any]) -> tuple[str, Question] | None:
    """The file that has the arguments, and what to ask about them. Raises `UnseenError`."""
    found = launcher.wiring(unit)
    if not found.wired or found.file is None:
        return None
    match found.file.name:
        case "vm.toml":
            # The launcher asks this program for its version.
            _roots(Path(found.real or _DEFAULT_HYPERVISOR))
            call = _Call(_launcher_of(unit), ("--spec", str(_roots(found.file))))
        case "microvm-run":
            call = _of_script(found.file, _roots)
        case _:
            call = _of_unit(unit)
    return str(found.file), _question(vm, call, _roots, unit.get("User") or "")


def _question(vm: VmConfig, call: _Call, trust: _Trust, user: str = "") -> Question:
    program = call.program if call.program.startswith("/") else shutil.which(call.program)
    if program is None:
        raise UnseenError(f"{call.program} does not exist")
    # The VM's own arguments for the launcher come first, as at a start of the VM.
    words = (*call.own, "--check", *assumed(vm), *(() if call.argv is None else ("--", *call.argv)))
    program = str(trust(Path(program)))
    version = hypervisor.version_of(program, call.real, user) if call.real else None
    if version is not None:
        words = (f"{_VERSION}={version}", *words)
    return Question(program, words, user)


def _verdict(file: str, asked: Question) -> Verdict:
    answer = questions.ask(asked)
    if answer.returncode == 0:
        return Verdict(file)
    refused = refusal(answer)
    if answer.returncode not in {Exit.USAGE, Exit.CREDENTIALS}:
        raise UnseenError(refused.what or f"{asked.program} does not answer")
    return Verdict(file, refused.what or "refused", refused.remedy)


def _of_script(file: Path, trust: _Trust) -> _Call:
    """The launcher's call in a script, or in the wrapper that the script starts instead."""
    words = _last_command(trust(file)).with_arguments(())
    if Path(words[0]).name == _LAUNCHER:
        return _of_words(words, trust)
    wrapper = _last_command(trust(Path(words[0])))
    if None not in wrapper.words:
        raise UnseenError(f"{words[0]} does not pass its arguments to the launcher")
    return _of_words(wrapper.with_arguments(words[1:]), trust)


def _launcher_of(unit: Mapping[str, Any]) -> str:
    """The launcher that the unit names, for a VM that is started from a spec."""
    command = " ".join(word for line in probe.command_lines(unit) for word in line)
    found = _STARTS_SPEC.search(command)
    return found[1] if found is not None else _LAUNCHER


def _of_unit(unit: Mapping[str, Any]) -> _Call:
    lines = probe.command_lines(unit)
    if len(lines) != 1 or any("$" in word for word in lines[0]):
        raise UnseenError("the unit's command is only known when it runs")
    return _of_words(lines[0], _roots)


def _of_words(words: Sequence[str], trust: _Trust) -> _Call:
    program, rest = words[0], tuple(words[1:])
    if Path(program).name != _LAUNCHER or "--" not in rest:
        raise UnseenError(f"{program} is not {_LAUNCHER} with -- before cloud-hypervisor's arguments")
    at = rest.index("--")
    own = _own(rest[:at])
    if _VERSION not in own:
        # The launcher asks the program itself.
        trust(Path(own.get("--real", "")))
    real = "" if _VERSION in own else own.get("--real", "")
    return _Call(program, tuple(f"{name}={value}" for name, value in own.items()), rest[at + 1 :], real)


def _own(words: Sequence[str]) -> dict[str, str]:
    """The launcher's own options. Raises `UnseenError` for an option that does not start a VM."""
    found = {}
    left = list(words)
    while left:
        name, equals, value = left.pop(0).partition("=")
        if name not in _OWN or not (equals or left):
            raise UnseenError(f"{_LAUNCHER} has options that start no VM")
        found[name] = value if equals else left.pop(0)
    return found


def _last_command(file: Path) -> shell.Command:
    try:
        return shell.last_command(probe.text_of(file) or "")
    except shell.UnclearError as error:
        raise UnseenError(f"{file}: {error}") from None


def _roots(path: Path) -> Path:
    """Where a path leads. Raises `UnseenError` if another user than root can change the target."""
    target = _target(path)
    found = probe.changeable(target)
    if found is not None:
        raise UnseenError(f"{found[0]} can be changed by {found[1]}")
    return target


def _target(path: Path) -> Path:
    if not path.is_absolute():
        raise UnseenError("the command names a program or file without its absolute path")
    return Path(os.path.realpath(path))
