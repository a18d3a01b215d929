# SPDX-License-Identifier: MIT
"""`credferry doctor` has the launcher judge a VM's real arguments, which it reads as data."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from credferry.agent.cli.application import application
from credferry.agent.config.loading import parse
from credferry.agent.doctor import arguments, probe, shell
from credferry.agent.doctor.finding import Severity
from credferry.agent.doctor.refusal import Refusal, refusal
from tests.support.modules import MODULES

if TYPE_CHECKING:
    from credferry.agent.doctor.finding import Finding

CHECKOUT = Path(__file__).parents[3]
CASES = json.loads((CHECKOUT / "tests/data/microvm-nix-commands.json").read_text())["cases"]
GENERATED = [case for case in CASES if "argv" in case]
RUNNER = """#!/bin/bash
set -eou pipefail
rm -f 'web.sock'
if [ -n "${{NOTIFY_SOCKET:-}}" ]; then
  socat -T2 UNIX-LISTEN:notify.vsock_8888,fork UNIX-SENDTO:$NOTIFY_SOCKET &
fi
exec 9<>/dev/tap7
runtime_args={added}

exec -a "microvm@web" {command} ${{runtime_args:-}}
"""
"""As microvm.nix writes it."""
BOOT = ("--kernel", "/k", "--memory", "size=64M")


def vm_of(settings: str = "") -> Any:  # noqa: ANN401 (a VM's configuration)
    """A VM with one secret."""
    text = f'[vms.web]\n{settings}\n[vms.web.credentials]\nKEY = {{ secret = "key" }}\n'
    return parse(text.encode(), Path("config.toml")).vms["web"]


class Site:
    """A VM's files in a directory, with this checkout's launcher."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.launcher = self.script("bin/credferry-launch", f"exec {sys.executable} -m credferry.launcher")
        self.launcher.write_text(
            f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(MODULES)!r})\n"
            "from credferry.launcher.__main__ import main\nsys.exit(main())\n"
        )
        self.real = self.script(
            "real/cloud-hypervisor", f"touch {directory}/ran; echo cloud-hypervisor v53.0"
        )

    def script(self, name: str, text: str) -> Path:
        """An executable script."""
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return path

    def runner(self, *argv: str, added: str = "", wrapped: bool = True) -> None:
        """microvm.nix's script, through a wrapper in the hypervisor's place or straight to the launcher."""
        launch = f"{self.launcher} --real {self.real} --hypervisor-version 53.0 --"
        wrapper = self.script("wrapped/cloud-hypervisor", f'exec {launch} "$@"')
        start = str(wrapper) if wrapped else launch
        self.script("vm/current/bin/microvm-run", "").write_text(
            RUNNER.format(command=f"{start} {shlex.join(argv)}", added=added)
        )

    def judge(
        self, settings: str = "", command: str = "/bin/sh -c current/bin/microvm-run"
    ) -> list[Finding]:
        """What doctor finds."""
        argv = shlex.split(command)
        unit = {
            "LoadState": "loaded",
            "WorkingDirectory": str(self.directory / "vm"),
            "ExecStart": [[argv[0], argv]],
            "FragmentPath": "/web.service",
        }
        return list(arguments.check(SimpleNamespace(unit=lambda _: unit), vm_of(settings)))  # type: ignore[arg-type]  # all that the check asks of it


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """Files that count as root's, whoever runs the tests and wherever."""
    monkeypatch.setattr(probe, "changeable", lambda _: None)
    return Site(tmp_path)


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize(
    ("settings", "argv", "said"),
    [
        ("", (*BOOT, "--gpu", "x"), "--gpu"),
        ("", (*BOOT, "-v"), "-v would make cloud-hypervisor log credential KEY"),
        ("", (*BOOT, "--dbus-system-bus"), "--dbus-system-bus would show credential KEY"),
        ("", ("--memory", "size=64M"), "neither --kernel nor --firmware"),
        ("guest_key = true\ninitrd = true", BOOT, "--initramfs"),
        ("", (*BOOT, "--platform", f"oem_strings=[{'x' * 4090}]"), "4091 bytes"),
    ],
)
def test_what_the_launcher_would_refuse_is_a_problem(
    site: Site, settings: str, argv: tuple[str, ...], said: str, wrapped: bool
) -> None:
    """Before the VM's first start, with the launcher's own line and remedy, and nothing of the VM is run."""
    site.runner(*argv, wrapped=wrapped)
    (finding,) = site.judge(settings)
    assert (finding.severity, finding.check) == (Severity.PROBLEM, "vm.arguments")
    assert said in finding.what
    assert "next start fails" in finding.why
    assert finding.remedy
    assert not (site.directory / "ran").exists()


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize(
    ("settings", "argv"),
    [
        ("", BOOT),
        ("guest_key = true", (*BOOT, "-v")),
        ('guest_key = true\nchannel = "command"', (*BOOT, "--gpu", "x")),
        ("guest_systemd = 257", (*BOOT, "--platform", f"oem_strings=[{'x' * 4090}]")),
        ('channel = "command"\nplaintext_in_argv = true', BOOT),
        ("guest_key = true\ninitrd = true", (*BOOT, "--initramfs", "/i")),
    ],
)
def test_what_the_launcher_would_accept_is_well(
    site: Site, settings: str, argv: tuple[str, ...], wrapped: bool
) -> None:
    """The VM's own settings count: what only another channel or guest would be refused is well."""
    site.runner(*argv, wrapped=wrapped)
    (finding,) = site.judge(settings)
    assert (finding.severity, finding.check) == (Severity.OK, "vm.arguments")


@pytest.mark.parametrize("options", ['["-v"]', '["--gpu", "x"]', "[]"])
def test_a_spec_is_judged(site: Site, options: str) -> None:
    """A VM from a file is judged as its start would judge it."""
    site.runner()
    (site.directory / "vm/current/vm.toml").write_text(
        f'name = "web"\nkernel = "/k"\nhypervisor = "{site.real}"\noptions = {options}\n'
    )
    command = f"/bin/sh -c 'exec {site.launcher} --spec current/vm.toml'"
    (finding,) = site.judge(command=command)
    assert finding.severity is (Severity.OK if options == "[]" else Severity.PROBLEM)


def test_a_unit_that_starts_the_launcher_itself_is_judged(site: Site) -> None:
    """Its command is the one that systemd has; one with variables cannot be told."""
    launch = f"{site.launcher} --real {site.real} --"
    (finding,) = site.judge(command=f"{launch} {shlex.join(BOOT)} -v")
    assert finding.severity is Severity.PROBLEM
    (finding,) = site.judge(command=f"{launch} {shlex.join(BOOT)} '$MORE'")
    assert finding.what.startswith("cannot tell")


def test_without_a_launcher_there_is_nothing_to_judge(site: Site) -> None:
    """That the launcher is missing is another finding."""
    site.script("vm/current/bin/microvm-run", f"exec {site.real} -v ")
    assert site.judge() == []


def test_what_others_can_change_is_not_run(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the launcher, nor the hypervisor, nor a wrapper; the finding names what can be changed."""
    site.runner(*BOOT)
    wrapper = site.directory / "wrapped/cloud-hypervisor"
    wrapper.write_text(wrapper.read_text().replace("--hypervisor-version 53.0 ", ""))
    (finding,) = site.judge()
    assert finding.severity is Severity.OK
    (site.directory / "ran").unlink()
    run = site.directory / "vm/current/bin/microvm-run"
    for each in (site.launcher, site.real, wrapper, run):
        monkeypatch.setattr(
            probe, "changeable", lambda path, each=each: (path, "mallory") if path == each else None
        )
        monkeypatch.setattr(probe, "run", lambda *_, **__: pytest.fail("something was run"))
        (finding,) = site.judge()
        assert finding.severity is Severity.HINT
        assert f"{each} can be changed by mallory" in finding.what


def test_a_spec_or_its_hypervisor_that_others_can_change_is_not_run(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The launcher would ask that hypervisor for its version, and believe that spec."""
    spec = site.directory / "vm/current/vm.toml"
    site.runner()
    spec.write_text(f'name = "web"\nkernel = "/k"\nhypervisor = "{site.real}"\n')
    monkeypatch.setattr(probe, "run", lambda *_, **__: pytest.fail("something was run"))
    for each in (spec, site.real):
        monkeypatch.setattr(
            probe, "changeable", lambda path, each=each: (path, "mallory") if path == each else None
        )
        (finding,) = site.judge(command=f"/bin/sh -c 'exec {site.launcher} --spec current/vm.toml'")
        assert finding.severity is Severity.HINT
        assert f"{each} can be changed by mallory" in finding.what


def test_a_wrapper_that_drops_its_arguments_is_not_judged(site: Site) -> None:
    """The arguments of the script would not be those of the start."""
    site.runner(*BOOT)
    wrapper = site.directory / "wrapped/cloud-hypervisor"
    wrapper.write_text(wrapper.read_text().replace('"$@"', shlex.join(BOOT)))
    (finding,) = site.judge()
    assert finding.severity is Severity.HINT
    assert f"{wrapper} does not pass its arguments to the launcher" in finding.what


@pytest.mark.parametrize(
    "own", ["--spec /s", "--root-program /bin/true", "--explain", "--real /r --spec=/s", "--tap-up"]
)
def test_a_launcher_that_starts_no_vm_is_not_run(site: Site, own: str) -> None:
    """Only the options that a VM's start has are passed on."""
    site.script("vm/current/bin/microvm-run", f"exec {site.launcher} {own} --real {site.real} -- -v")
    (finding,) = site.judge()
    assert "options that start no VM" in finding.what


UNCLEAR = {
    "a variable": 'exec launch -- --kernel "$KERNEL"',
    "a command's output": "exec launch -- $(cat arguments)",
    "backquotes": 'exec launch -- "`cat arguments`"',
    "a pattern": "exec launch -- --kernel /boot/vmlinux*",
    "braces": "exec launch -- --disk path={a,b}",
    "a redirection": "exec launch -- --kernel /k 2>/dev/null",
    "an open quote": "exec launch -- 'x",
    "a command after it": "exec launch -- -v\nexec other $x",
    "a branch": "if true; then\n  exec launch -- -v\nfi",
    "no exec": "launch -- -v",
    "an option of exec": "exec -c launch -- -v",
    "arguments of the script before the program": 'exec "$@"',
    "added at run time": "runtime_args=$(more)\nexec launch -- -v ${runtime_args:-}",
    "added on a further line": "runtime_args=\\\n$(more)\nexec launch -- -v $runtime_args",
    "added by who knows": "exec launch -- -v $runtime_args",
    "a tilde": "exec launch -- --kernel ~/k",
    "a comment": "exec launch -- -v # -w",
}


@pytest.mark.parametrize("case", UNCLEAR)
def test_a_script_that_is_not_clear_is_not_guessed(site: Site, case: str) -> None:
    """Doctor says that it cannot tell, and how to ask the launcher."""
    with pytest.raises(shell.UnclearError):
        shell.last_command(UNCLEAR[case])
    text = UNCLEAR[case].replace("launch --", f"{site.launcher} --real {site.real} --")
    site.script("vm/current/bin/microvm-run", f"# {site.launcher} --real {site.real} --\n{text}")
    (finding,) = site.judge()
    assert (finding.severity, finding.check) == (Severity.HINT, "vm.arguments")
    assert finding.what.startswith("cannot tell")
    assert "credferry-launch --check --channel=api --kinds=KEY=plain" in finding.remedy


@pytest.mark.parametrize("case", GENERATED, ids=lambda case: case["name"])
def test_the_words_are_those_that_a_shell_would_give(case: dict[str, Any]) -> None:
    """Over all recorded commands of microvm.nix: the script's words are the recorded argument vector."""
    text = RUNNER.format(command=shlex.join(case["argv"]), added="")
    assert shell.last_command(text).with_arguments(()) == tuple(case["argv"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("exec a 'b c'd \"e f\"\\ g", ("a", "b cd", "e f g")),
        ("exec a \\\n  --cmdline 'x\ny'\n\n# end\n", ("a", "--cmdline", "x\ny")),
        ('exec a "\\$b\\"\\\\" \'\'', ("a", '$b"\\', "")),
        ("\texec -a 'n m' a b=c", ("a", "b=c")),
        ('exec a "$@" b', ("a", "1", "2 3", "b")),
    ],
)
def test_quotes_are_taken_as_a_shell_takes_them(text: str, words: tuple[str, ...]) -> None:
    """Quotes, escapes, continued lines, and the script's own arguments."""
    assert shell.last_command(text).with_arguments(("1", "2 3")) == words


def test_a_remedy_is_whole(site: Site) -> None:
    """A remedy with a colon in it is not cut there: the launcher passes message and remedy apart."""
    site.runner("--memory", "size=64M")
    (finding,) = site.judge()
    assert finding.what.endswith("neither --kernel nor --firmware is given")
    assert finding.remedy == "there is nothing to boot: give one"


@pytest.mark.parametrize(
    "answer", ["", "{}", "[]", '{"refused": "a"}', '{"refused": 1, "hint": 2}', "[" * 9999]
)
def test_a_launcher_of_another_release_is_quoted(answer: str) -> None:
    """A launcher that answers with no JSON, or other JSON, has said its line; the doctor does not cut it."""
    done = subprocess.CompletedProcess([], 64, answer, "warning\ncredferry-launch: a: b: c\n")
    assert refusal(done) == Refusal("a: b: c", "see: man credferry-launch")


def test_a_verdict_that_is_none_is_a_hint(site: Site) -> None:
    """A launcher that ends in another way has not judged: no problem is made up."""
    site.runner(*BOOT)
    site.launcher.write_text("#!/bin/sh\necho 'credferry-launch: odd: report it' >&2\nexit 70\n")
    (finding,) = site.judge()
    assert (finding.severity, "odd" in finding.what) == (Severity.HINT, True)


@pytest.mark.parametrize("is_root", [True, False])
def test_check_judges_the_runner_that_it_is_given(
    site: Site, monkeypatch: pytest.MonkeyPatch, is_root: bool
) -> None:
    """As where NixOS builds a host: no unit is asked. Root still runs only what nobody else can change."""
    config = site.directory / "config.toml"
    config.write_text('[vms.web.credentials]\nKEY = { secret = "key" }\n')
    script = site.directory / "vm/current/bin/microvm-run"
    words = ["check", "--config", str(config), "--runner", f"web={script}"]
    monkeypatch.setattr(probe, "is_root", lambda: is_root)
    site.runner(*BOOT)
    done = CliRunner().invoke(application(), words)
    assert (done.exit_code, done.stderr) == (0, "")
    site.runner(*BOOT, "-v")
    done = CliRunner().invoke(application(), words)
    assert done.exit_code == 1
    assert f"VM web: its next start would fail: {script}: -v would make" in done.stderr
    monkeypatch.setattr(probe, "changeable", lambda path: (path, "mallory"))
    done = CliRunner().invoke(application(), words)
    assert ("can be changed by mallory" in done.stderr) is is_root
    assert done.exit_code == (0 if is_root else 1)


@pytest.mark.parametrize("word", ["web", "web="])
def test_a_runner_without_a_file_is_refused(site: Site, word: str) -> None:
    """The option takes VM=FILE."""
    config = site.directory / "config.toml"
    config.write_text('[vms.web.credentials]\nKEY = { secret = "key" }\n')
    done = CliRunner().invoke(application(), ["check", "--config", str(config), "--runner", word])
    assert done.exit_code == 2
    assert "expected VM=FILE" in done.stderr
