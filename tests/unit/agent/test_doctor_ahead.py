# SPDX-License-Identifier: MIT
"""`credferry doctor` asks for many VMs at once: the launcher starts once, and busctl not at all."""

from __future__ import annotations

import json
import shlex
import sys
from typing import TYPE_CHECKING, Any

import pytest

from credferry.agent.config.loading import parse
from credferry.agent.doctor import arguments, hypervisor, probe, questions
from credferry.agent.doctor.ahead import ask_launchers
from credferry.agent.doctor.examination import examine
from credferry.agent.doctor.finding import Severity, UnseenError
from credferry.agent.doctor.questions import Question
from tests.support.modules import MODULES

if TYPE_CHECKING:
    from pathlib import Path

    from credferry.agent.config.model import VmConfig

BOOT = ("--kernel", "/k", "--memory", "size=64M")
NAMES = ("a", "b", "c", "d")
LAUNCHER = f"""#!{sys.executable}
import sys
sys.path.insert(0, {str(MODULES)!r})
with open({{log!r}}, "a") as log:
    log.write(" ".join(sys.argv[1:2]) + "\\n")
from credferry.launcher.__main__ import main
sys.exit(main())
"""


class Site:
    """Four VMs, each with arguments of its own, and a launcher that notes each of its starts."""

    def __init__(self, top: Path) -> None:
        self.top, self.log = top, top / "log"
        self.launcher = self.program("credferry-launch", LAUNCHER.format(log=str(self.log)))
        self.real = self.program("cloud-hypervisor", "#!/bin/sh\necho cloud-hypervisor v53.0\n")
        text = "".join(f'[vms.{vm}.credentials]\nK = {{ text = "k" }}\n' for vm in NAMES)
        self.vms = list(parse(text.encode(), top / "config.toml").vms.values())
        for vm in NAMES:
            words = (*BOOT, "--gpu", "x") if vm == "b" else (*BOOT, "--serial", f"file=/{vm}")
            start = f"{self.launcher} --real {self.real} -- {shlex.join(words)}"
            self.program(f"{vm}/current/bin/microvm-run", f"#!/bin/sh\nexec -a microvm@{vm} {start}\n")

    def program(self, name: str, text: str) -> Path:
        """An executable file."""
        path = self.top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
        return path

    def unit(self, vm: VmConfig) -> dict[str, Any]:
        """The properties of a VM's unit."""
        argv = ["/bin/sh", "-c", "current/bin/microvm-run"]
        return {
            "LoadState": "loaded",
            "WorkingDirectory": str(self.top / vm.name),
            "ExecStart": [[argv[0], argv]],
            "FragmentPath": "/web.service",
        }

    def verdicts(self) -> list[str]:
        """The launcher's refusal of each VM, in order."""
        found = [arguments.judge(vm, self.unit(vm)) for vm in self.vms]
        return [each.refusal for each in found if each is not None]

    def starts(self) -> list[str]:
        """The first word of each start of the launcher so far."""
        return self.log.read_text().splitlines()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """Files that count as root's."""
    monkeypatch.setattr(probe, "changeable", lambda _: None)
    return Site(tmp_path)


def test_many_vms_are_one_start_of_the_launcher(site: Site) -> None:
    """After two starts, for the version and for all arguments, each VM has its own verdict."""
    ask_launchers(site.vms, site.unit)
    assert site.starts() == ["--real", "--questions"]
    first, second, third, fourth = site.verdicts()
    assert (first, third, fourth) == ("", "", "")
    assert "--gpu" in second
    assert site.starts() == ["--real", "--questions"]


@pytest.mark.parametrize(
    "answers",
    [
        "",
        "x\n" * 4,
        "{}\n" * 4,
        '{"status": 0, "output": "", "error": ""}\n',
        "[" * 9999,
        '{"status": "0", "output": "", "error": ""}\n' * 4,
    ],
)
def test_a_launcher_that_does_not_answer_all_is_started_for_each(site: Site, answers: str) -> None:
    """As one of an earlier release: nothing is taken from its answers, and each VM has its own verdict."""
    text = site.launcher.read_text()
    (site.top / "answers").write_text(answers)
    odd = (
        f'if sys.argv[1] == "--questions": sys.exit(print(end=open({str(site.top / "answers")!r}).read()))\n'
    )
    site.launcher.write_text(text.replace("from credferry", f"{odd}from credferry", 1))
    ask_launchers(site.vms, site.unit)
    assert [bool(each) for each in site.verdicts()] == [False, True, False, False]
    assert len(site.starts()) == 2 + len(NAMES)


def test_answers_of_a_launcher_that_failed_do_not_count(site: Site) -> None:
    """It ends with another status than 0: each VM is asked about by itself."""
    good = '{"status": 0, "output": "", "error": ""}\n' * 4
    text = site.launcher.read_text()
    odd = f'if sys.argv[1] == "--questions": print(end={good!r}); sys.exit(64)\n'
    site.launcher.write_text(text.replace("from credferry", f"{odd}from credferry", 1))
    ask_launchers(site.vms, site.unit)
    assert [bool(each) for each in site.verdicts()] == [False, True, False, False]


def test_a_vm_that_cannot_be_asked_about_keeps_no_other_from_it(site: Site) -> None:
    """Its own check says why. A unit that is not loaded is not asked about."""

    def unit(vm: VmConfig) -> dict[str, Any]:
        if vm.name == "a":
            raise UnseenError("the bus")
        return site.unit(vm) | ({"LoadState": "masked"} if vm.name == "c" else {})

    ask_launchers(site.vms, unit)
    assert site.starts() == ["--real", "--questions"]
    assert hypervisor.question_of_version(site.vms[1], site.unit(site.vms[1])) is not None


def test_vms_of_different_users_are_asked_about_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """A launcher runs as the VM's user: what it says about a VM is not said by another VM's user."""
    asked: list[tuple[str, str, int]] = []

    def run(program: str, *words: str, user: str = "", said: str = "", **_: object) -> object:
        asked.append((words[0], user, len(said.splitlines())))
        raise UnseenError(program)

    monkeypatch.setattr(probe, "run", run)
    for_two = [Question("/l", ("--check", str(number)), user) for user in ("u", "v") for number in range(2)]
    questions.ask_all([*for_two, *for_two, Question("/l", ("--check",), "w")])
    assert asked == [("--questions", "u", 2), ("--questions", "v", 2)]


def test_no_program_is_started_for_each_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many VMs there are, the same programs start, and busctl at most once."""
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={tmp_path}/bus")
    started: dict[int, list[str]] = {}
    run = probe.run
    for count in (1, 8):
        probe.unit.cache_clear()
        probe.units.cache_clear()
        started[count] = []

        def note(*argv: str, count: int = count, **options: Any) -> object:  # noqa: ANN401 (as subprocess.run)
            started[count].append(argv[0])
            return run(*argv, **options)

        monkeypatch.setattr(probe, "run", note)
        file = tmp_path / "config.toml"
        file.write_text("".join(f'[vms.v{n}.credentials]\nK = {{ text = "k" }}\n' for n in range(count)))
        assert [each for each in examine(file) if each.severity is Severity.PROBLEM]
    assert started[1] == started[8]
    assert "busctl" not in started[8]


def test_a_unit_s_properties_are_unpacked_as_busctl_prints_them() -> None:
    """Arrays and structs are lists, and a property that there is not is a KeyError."""
    from gi.repository import GLib  # noqa: PLC0415 (slow to load)

    from credferry.agent.doctor.unit_properties import Properties  # noqa: PLC0415 (the same)

    packed = GLib.Variant(
        "a{sv}",
        {
            "LoadCredentialEncrypted": GLib.Variant("a(ss)", [("a", "/b")]),
            "InvocationID": GLib.Variant("ay", b"\1\2"),
            "MainPID": GLib.Variant("u", 7),
        },
    )
    found = Properties(packed)
    assert found["LoadCredentialEncrypted"] == [["a", "/b"]]
    assert (found["InvocationID"], found["MainPID"]) == ([1, 2], 7)
    assert (found.get("Other"), len(found), "MainPID" in found) == (None, 3, True)
    assert json.loads(json.dumps(dict(found)))["MainPID"] == 7
