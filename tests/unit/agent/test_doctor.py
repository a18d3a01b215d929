# SPDX-License-Identifier: MIT
"""What `credferry doctor` stands on: isolated checks, its own copy of the drop-in, a command's way."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from credferry.agent.config.loading import load, parse
from credferry.agent.daemon.once import seal_once
from credferry.agent.doctor import bus, hypervisor, landlock, probe, unit_files, vm_state
from credferry.agent.doctor.chain import Chain
from credferry.agent.doctor.drop_in import SETTINGS, lines_for
from credferry.agent.doctor.examination import examine, isolated
from credferry.agent.doctor.finding import Severity, UnseenError, ok
from credferry.agent.doctor.launcher import wiring
from credferry.agent.rollout.clock import Clock
from credferry.agent.store.records import LastTurn
from credferry.agent.systemd.polkit import rule
from credferry.launcher.handoff import Channel
from tests.support.loop import Loop

if TYPE_CHECKING:
    from collections.abc import Iterator

    from credferry.agent.config.model import VmConfig
    from credferry.agent.doctor.finding import Finding

CHECKOUT = Path(__file__).parents[3]
VM = parse(b'[vms.web.credentials]\nKEY = { secret = "key" }\n', Path("config.toml")).vms["web"]
REAL = "/opt/real/cloud-hypervisor"


def lines_of(text: str) -> set[str]:
    """Section and setting of each line that says something."""
    section, found = "", set()
    for line in text.splitlines():
        section = line if line.startswith("[") else section
        if "=" in line and not line.startswith("#"):
            found.add(f"{section}{line}")
    return found


def test_the_drop_in_is_the_one_of_contrib() -> None:
    """What the doctor looks for, and writes where there is none, is contrib's drop-in, line by line."""
    contrib = (CHECKOUT / "contrib/systemd/credferry-vm.conf").read_text().replace("%i", "web")
    assert lines_of("\n".join(lines_for(VM, Path("/var/lib/credferry")))) == lines_of(contrib)
    assert len({setting.check for setting in SETTINGS}) == len(SETTINGS)


def test_the_drop_in_without_a_launcher_is_the_one_of_contrib() -> None:
    """A unit that reads its credentials itself needs fewer lines, which stand in a file of their own."""
    contrib = (CHECKOUT / "contrib/systemd/credferry-unit.conf").read_text().replace("%N", "web")
    unit = msgspec.structs.replace(VM, channel=Channel.DIRECTORY)
    assert lines_of("\n".join(lines_for(unit, Path("/var/lib/credferry")))) == lines_of(contrib)


def test_a_check_that_fails_is_a_finding() -> None:
    """What it found before stays; what it raised is told by its place, never by its text."""

    def check() -> Iterator[Finding]:
        yield ok("link", "well")
        raise ValueError("canary 1d77")

    first, second = isolated("link", check)
    assert first.what == "well"
    assert (second.severity, second.check) == (Severity.HINT, "link")
    assert "ValueError at check" in second.what
    assert "canary" not in repr(second)


@pytest.mark.parametrize(
    "error",
    [UnseenError("a file"), PermissionError(13, "Permission denied", "/a/file")],
    ids=["unseen", "mode"],
)
def test_what_cannot_be_seen_is_a_hint(error: Exception) -> None:
    """It is no problem, and no reason to end."""

    def check() -> Iterator[Finding]:
        raise error
        yield

    (finding,) = isolated("link", check, "web")
    assert (finding.severity, finding.vm) == (Severity.HINT, "web")
    assert finding.what.startswith("not checked: ")


def test_nothing_here_is_no_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without configuration, programs or a bus it says so, check by check."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={tmp_path}/bus")
    probe.unit.cache_clear()
    probe.units.cache_clear()
    findings = list(examine(tmp_path / "config.toml"))
    assert {"configuration", "bus"} <= {each.check for each in findings if each.severity is Severity.PROBLEM}
    assert [each.what for each in findings if each.remedy == "please report it"] == []


def unit(directory: Path, command: str = "/bin/sh -c current/bin/microvm-run") -> dict[str, Any]:
    """The properties of a unit with this command."""
    argv = command.split()
    return {"WorkingDirectory": str(directory), "ExecStart": [[argv[0], argv]], "FragmentPath": "/a.service"}


@pytest.mark.parametrize("quote", ["", "'", '"'])
def test_a_script_is_followed_to_a_wrapper(tmp_path: Path, quote: str) -> None:
    """As with microvm.nix: the script starts a wrapper that has the hypervisor's name."""
    wrapper, script = tmp_path / "bin/cloud-hypervisor", tmp_path / "current/bin/microvm-run"
    for path in (wrapper, script):
        path.parent.mkdir(parents=True)
    script.write_text(f"#!/bin/sh\nexec -a microvm@web {quote}{wrapper}{quote} --cpus boot=1\n")
    wrapper.write_bytes(b"\x7fELF")
    found = wiring(unit(tmp_path))
    assert (found.wired, found.bare) == (False, str(wrapper))
    wrapper.write_text(
        f'#!/bin/sh\nexec /opt/bin/credferry-launch --real {REAL} --hypervisor-version 53.0 -- "$@"\n'
    )
    found = wiring(unit(tmp_path))
    assert (found.wired, found.real, found.launcher) == (True, REAL, "/opt/bin/credferry-launch")


@pytest.mark.parametrize(
    ("answer", "version"),
    [
        ('{"hypervisor_version": "53.0"}', "53.0"),
        ("", None),
        ("usage: true", None),
        ("[]", None),
        ("null", None),
        ("{}", None),
        ('{"hypervisor_version": 53}', None),
        ("[" * 100_000, None),
    ],
)
def test_a_launcher_that_answers_oddly_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, version: str | None
) -> None:
    """Another program in its place, or one of another release, is a finding with a remedy, and no error."""
    finding = asked(tmp_path, monkeypatch, answer, VM)
    assert finding.check == "vm.hypervisor"
    assert finding.severity is (Severity.OK if version else Severity.PROBLEM)
    assert (f"cloud-hypervisor {version}" in finding.what) is bool(version)
    assert bool(finding.remedy) is not bool(version)


@pytest.mark.parametrize(
    ("version", "live", "is_fine"), [("49.0", True, False), ("50.0", True, True), ("49.0", False, True)]
)
def test_a_live_vm_needs_a_hypervisor_that_takes_pushes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, live: bool, is_fine: bool
) -> None:
    """An older one is a problem of live VMs alone, with the release to install."""
    finding = asked(
        tmp_path,
        monkeypatch,
        json.dumps({"hypervisor_version": version}),
        msgspec.structs.replace(VM, live=live),
    )
    assert (finding.severity is Severity.OK) == is_fine
    assert ("install cloud-hypervisor 50 or later" in finding.remedy) != is_fine


def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, vm: VmConfig) -> Finding:
    """The finding about a VM whose launcher gives this answer."""
    monkeypatch.setattr(probe, "changeable", lambda _: None)
    (tmp_path / "answer").write_text(answer)
    program, script = tmp_path / "credferry-launch", tmp_path / "current/bin/microvm-run"
    program.write_text(f"#!/bin/sh\ncat {tmp_path}/answer\n")
    program.chmod(0o755)
    script.parent.mkdir(parents=True)
    script.write_text(f"#!/bin/sh\nexec {program} --real {REAL} --\n")
    properties = unit(tmp_path) | {"LoadState": "loaded"}
    chain: Any = SimpleNamespace(unit=lambda _: properties)
    (finding,) = hypervisor.check(chain, vm)
    return finding


@pytest.mark.parametrize("live", [False, True])
def test_polkit_must_also_grant_pushes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, live: bool) -> None:
    """A rule from before the VM was live is a problem, and made again, it is fine."""
    config = parse(b'[vms.web.credentials]\nKEY = { secret = "key" }\n', Path("config.toml"))
    changed = msgspec.structs.replace(
        config, vms={"web": msgspec.structs.replace(config.vms["web"], live=live)}
    )
    chain: Any = SimpleNamespace(
        agent_user="credferry", error=None, config=changed, file=Path("config.toml")
    )
    monkeypatch.setattr(bus, "_RULES", (str(tmp_path),))
    (tmp_path / "50-credferry.rules").write_text(rule(config, "credferry"))
    (before,) = bus.check_polkit(chain)
    assert before.severity is (Severity.PROBLEM if live else Severity.OK)
    (tmp_path / "50-credferry.rules").write_text(rule(changed, "credferry"))
    (after,) = bus.check_polkit(chain)
    assert (after.severity, "push to the live ones" in after.what) == (Severity.OK, live)


def test_a_restart_that_waits_is_not_said_to_come_within_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pause, a window or a canary holds it back, as `credferry status` says: that is no finding."""
    tables = "".join(f'[vms.{vm}.credentials]\nK = {{ secret = "k" }}\n' for vm in "ab")
    loop = Loop(tmp_path, tables)
    loop.configure(tables, "pause_seconds = 3600\n")
    loop.publish(k="1")
    seal_once(load(loop.file))
    loop.start_vm("a")
    loop.publish(k="2")
    seal_once(load(loop.file))
    with loop.made() as service:
        clock = Clock()
        service._session.store.record_last_turn("b", LastTurn(clock.boot(), clock.wall()))
    monkeypatch.setattr(probe, "is_root", lambda: True)
    monkeypatch.setattr("credferry.agent.systemd.manager.SystemBus", lambda: loop.units)
    chain = Chain(loop.file)
    monkeypatch.setattr(chain, "unit", lambda _: {"LoadState": "not-found", "ActiveState": "inactive"})
    (found,) = [each for each in vm_state.check(chain, chain.config.vm("a")) if each.check == "vm.state"]
    assert found.severity is Severity.OK
    assert found.what.startswith("a is waiting: until the pause after b is over")


def test_a_spec_is_the_launchers(tmp_path: Path) -> None:
    """A VM without microvm.nix is wired by its spec, where its unit starts the launcher with it."""
    (tmp_path / "current").mkdir()
    (tmp_path / "current/vm.toml").write_text(f'name = "web"\nhypervisor = "{REAL}"\n')
    found = wiring(unit(tmp_path, "/bin/sh -c credferry-launch --spec current/vm.toml"))
    assert (found.wired, found.real) == (True, REAL)


def test_what_is_not_understood_is_said_to_be(tmp_path: Path) -> None:
    """Neither well nor a problem: a command in which there is no hypervisor."""
    assert wiring(unit(tmp_path, "/usr/bin/qemu-system-x86_64 -m 1G")).wired is None


@pytest.mark.parametrize(
    ("file", "text", "channel", "is_told"),
    [
        ("bin/microvm-run", "exec {launch} --real {real} -- --landlock --cpus boot=1\n", "api", True),
        ("bin/microvm-run", "exec {launch} --real {real} -- --cpus boot=1 '--landlock'\n", "api", True),
        ("bin/microvm-run", 'exec {launch} --real {real} -- "--landlock"\n', "api", True),
        ("bin/microvm-run", "exec {launch} --real {real} -- --landlock\n", "command", False),
        (
            "bin/microvm-run",
            "exec {launch} --real {real} -- --landlock-rules path=/a,access=r\n",
            "api",
            False,
        ),
        ("vm.toml", 'name = "web"\noptions = ["--landlock"]\n', "api", True),
        ("vm.toml", 'name = "web"\n', "api", False),
    ],
)
def test_landlock_in_the_api_channel_is_told(
    tmp_path: Path, file: str, text: str, channel: str, is_told: bool
) -> None:
    """A script or a spec with --landlock is a hint that names the way out, in the api channel alone."""
    path = tmp_path / "current" / file
    path.parent.mkdir(parents=True)
    path.write_text(text.format(launch="/opt/credferry-launch", real=REAL))
    config = f'[vms.web]\nchannel = "{channel}"\n[vms.web.credentials]\nKEY = {{ text = "k" }}\n'
    vm = parse(config.encode(), Path("config.toml")).vms["web"]
    command = "credferry-launch --spec current/vm.toml" if file == "vm.toml" else "current/bin/microvm-run"
    loaded = {**unit(tmp_path, command), "LoadState": "loaded"}
    chain = SimpleNamespace(unit=lambda _: loaded)
    findings = list(landlock.check(chain, vm))  # type: ignore[arg-type]  # all that the check asks of it
    assert [each.check for each in findings] == (["vm.landlock"] if is_told else [])
    assert all('channel = "command"' in each.remedy for each in findings)


def test_commands_quote_what_they_name() -> None:
    """A unit's name may hold what a shell would take for its own."""
    commands = unit_files.extend("a\\x2db;c@x.service", "Service", ["A=b c"], restart=True)
    assert "'/etc/systemd/system/a\\x2db;c@x.service.d'" in commands[0]
    assert commands[-1] == "systemctl try-restart 'a\\x2db;c@x.service'"


def on_the_page() -> set[str]:
    """Names of checks in the tables of docs/doctor.md; ``.reload`` goes with its row's first name."""
    found = set()
    for line in (CHECKOUT / "docs/doctor.md").read_text(encoding="utf-8").splitlines():
        names = re.findall(r"`([a-z_.-]+)`", line.split("|")[1]) if line.startswith("| `") else []
        for name in names:
            group = names[0].partition(".")[0]
            found |= {name, f"{names[0]}{name}", f"{group}{name}"} if name.startswith(".") else {name}
    return found


def test_each_check_is_on_the_page() -> None:
    """A finding is looked up by the name of its check: the page has every name that the code uses."""
    names = set()
    for path in (CHECKOUT / "agent/doctor").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(ast.Name("ok" | "hint" | "problem"), [ast.Constant(name), *_]):
                    names.add(name)
    assert len(names) > 20
    assert names - on_the_page() == set()
