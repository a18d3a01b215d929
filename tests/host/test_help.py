# SPDX-License-Identifier: MIT
"""Completions in the shells that they are for, and manual pages as man shows them."""

from __future__ import annotations

import os
import pty
import re
import subprocess
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import pytest

from docs.generate.commands import Command, commands
from docs.generate.files import ROOT
from tests.support.host import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

COMPLETIONS = ROOT / "contrib/completions"
PAGES = ("credferry.8", "credferry-launch.8", "credferry.toml.5")
CONFIG = """
[vms.web.credentials]
A = { text = "a" }
[vms."with.dot"]
guest_key = true
[vms."with.dot".credentials]
A = { text = "a" }
"""
COMPLETED = [
    ("credferry polk", "credferry polkit-rule"),
    ("credferry --vers", "credferry --version"),
    ("credferry agent --on", "credferry agent --once"),
    ("credferry guest-key cr", "credferry guest-key create"),
    ("credferry guest-key create --mach", "credferry guest-key create --machine-id"),
    ("credferry fleet st", "credferry fleet status"),
    ("credferry fleet release --unr", "credferry fleet release --unreadable"),
    ("credferry hold we", "credferry hold web"),
    ("credferry hold web wit", "credferry hold web with.dot"),
    ("credferry status --vm we", "credferry status --vm web"),
    ("credferry guest-key create wi", "credferry guest-key create with.dot"),
    ("credferry hold --config OTHER on", "credferry hold --config OTHER only"),
    ("credferry check --config OTH", "credferry check --config OTHER"),
]
"""What Tab makes of a line, but for a space that may follow. There is a file OTHER."""
BASH = """
source '{file}'
PS1=
report() {{ printf %s "$READLINE_LINE" >answer.new; mv answer.new answer; }}
bind -x '"\\C-xp": report'
"""
ZSH = """
PS1=
fpath=('{directory}' $fpath)
autoload -Uz compinit; compinit -u -D
report() {{ print -rn -- "$BUFFER" >answer.new; mv answer.new answer }}
zle -N report; bindkey -e; bindkey '^Xp' report
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory to type in, with two configuration files."""
    (tmp_path / "config.toml").write_text(CONFIG)
    (tmp_path / "OTHER").write_text('[vms.only.credentials]\nA = { text = "a" }\n')
    monkeypatch.setenv("CREDFERRY_CONFIG", str(tmp_path / "config.toml"))
    return tmp_path


@pytest.fixture(params=["bash", "zsh", "fish"])
def complete(request: pytest.FixtureRequest, place: Path) -> Iterator[Callable[[str], str]]:
    """What a shell makes of a line at Tab."""
    with ExitStack() as stack:
        match request.param:
            case "bash":
                shell = ["bash", "--noprofile", "--norc", "-i"]
                setup = BASH.format(file=COMPLETIONS / "credferry.bash")
                yield _typist(stack, place, shell, setup)
            case "zsh":
                yield _typist(stack, place, ["zsh", "-f", "-i"], ZSH.format(directory=COMPLETIONS))
            case _:
                yield lambda line: _fish(place, line)


def test_completions(complete: Callable[[str], str]) -> None:
    """Tab completes verbs, options, VMs of the configuration that is named, and files."""
    assert [complete(line).rstrip() for line, _ in COMPLETED] == [wanted for _, wanted in COMPLETED]


def test_bash_offers_everything(place: Path) -> None:
    """Each verb and each option where it belongs, and nothing else."""
    for command in commands().all():
        line = ["credferry", *command.path, "-"]
        assert _bash_offers(place, line) == sorted(name for each in command.options for name in each.names)
        if command.commands:
            assert _bash_offers(place, [*line[:-1], ""]) == sorted(
                each.path[-1] for each in command.commands
            )


def test_fish_offers_everything(place: Path) -> None:
    """Each verb and each option where it belongs, with its description."""
    for command in commands().all():
        line = " ".join(("credferry", *command.path, "-"))
        offered = dict(each.split("\t") for each in _fish_offers(place, line))
        assert offered.keys() == {name for each in command.options for name in each.names}
        assert all(offered[name] == each.help for each in command.options for name in each.names)


@pytest.mark.parametrize("page", PAGES)
def test_manual_pages(page: str) -> None:
    """There is no warning of groff, and the text has each verb and option, or each key."""
    text, warnings = _man(page)
    assert warnings == ""
    match page:
        case "credferry.8":
            for command in commands().all():
                section = _section(text, command)
                assert [name for each in command.options for name in each.names if name not in section] == []
        case "credferry.toml.5":
            document = (ROOT / "docs/configuration.md").read_text()
            keys = set(re.findall(r"(?m)^\| `(\w+)`", document))
            assert len(keys) > 30
            assert [key for key in keys if not re.search(rf"\b{key}\b", text)] == []
            assert "`" not in text
        case _:
            assert "--real PATH" in text


def _man(page: str) -> tuple[str, str]:
    """A page as a terminal of 80 columns shows it, and what groff complains about."""
    environment = {
        **os.environ,
        "LC_ALL": "C.UTF-8",
        "MANWIDTH": "80",
        "MANROFFSEQ": "",
        "MAN_KEEP_FORMATTING": "",
    }
    done = subprocess.run(
        ["man", "--warnings", "-E", "UTF-8", "-l", str(ROOT / "docs/man" / page)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return re.sub(".\b", "", done.stdout), done.stderr


def _section(text: str, command: Command) -> str:
    """What a page says of a verb, with the options that all have."""
    if not command.path or command.commands:
        return text
    _, _, rest = text.partition(f"\n   credferry {' '.join(command.path)}\n")
    assert rest
    return re.split(r"\n {0,3}\S", rest, maxsplit=1)[0] + "--help"


def _typist(stack: ExitStack, place: Path, shell: list[str], setup: str) -> Callable[[str], str]:
    """Types into a shell on a terminal, and has it tell what its line is then."""
    terminal, its = pty.openpty()
    process = stack.enter_context(
        subprocess.Popen(
            shell,
            stdin=its,
            stdout=its,
            stderr=its,
            cwd=place,
            env={**os.environ, "TERM": "dumb", "HISTFILE": "/dev/null", "LC_ALL": "C.UTF-8"},
            start_new_session=True,
        )
    )
    stack.callback(process.kill)
    os.close(its)
    stack.callback(os.close, terminal)
    os.set_blocking(terminal, False)
    answer = place / "answer"

    def said() -> bytes:
        with suppress(OSError):
            while chunk := os.read(terminal, 65536):
                output.extend(chunk)
        return bytes(output)

    output = bytearray()
    (place / "setup").write_text(setup)
    os.write(terminal, b". ./setup; echo rea''dy\n")
    wait_until(lambda: b"ready" in said(), 30, f"{shell[0]} ready")

    def type_in(line: str) -> str:
        os.write(terminal, b"\x15" + line.encode() + b"\t")
        os.write(terminal, b"\x18p")
        wait_until(lambda: said() and answer.exists(), 20, f"{shell[0]} at {line!r}")
        completed = answer.read_text()
        answer.unlink()
        return completed

    return type_in


def _bash_offers(place: Path, words: list[str]) -> list[str]:
    """What bash would list."""
    script = (
        f"source '{COMPLETIONS}/credferry.bash'; COMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1)); "
        '_credferry; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-c", script, "bash", *words], cwd=place, capture_output=True, text=True, check=True
    )
    return sorted(done.stdout.split())


def _fish_offers(place: Path, line: str) -> list[str]:
    script = f"source '{COMPLETIONS}/credferry.fish'; complete -C $argv[1]"
    environment = {**os.environ, "HOME": str(place)}
    done = subprocess.run(
        ["fish", "--no-config", "-c", script, line],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


def _fish(place: Path, line: str) -> str:
    """The line with its last word completed, where there is one way to do so."""
    offered = [each.partition("\t")[0] for each in _fish_offers(place, line)]
    assert len(offered) == 1, (line, offered)
    head, _, _ = line.rpartition(" ")
    return f"{head} {offered[0]}"
