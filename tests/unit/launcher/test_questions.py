# SPDX-License-Identifier: MIT
"""``--questions``: one launcher answers for many VMs, each as a launcher of its own would."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from credferry.launcher.errors import Exit

from .test_main import KERNEL, run

if TYPE_CHECKING:
    from pathlib import Path

CHECK = ("--check", "--major", "53")


def answers(*lines: str) -> list[dict[str, Any]]:
    """What a launcher answers to these lines."""
    done = run("--questions", said="".join(f"{line}\n" for line in lines))
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(line) for line in done.stdout.splitlines()]


def question(*words: str, directory: str = "/") -> str:
    """A line that asks with these words."""
    return json.dumps({"directory": directory, "words": words})


def test_each_answer_is_that_of_a_launcher_of_its_own() -> None:
    """Status, output and error are the same, for what is accepted and for what is refused."""
    asked = [
        (*CHECK, "--", *KERNEL),
        (*CHECK, "--", *KERNEL, "--gpu", "x"),
        (*CHECK, "--kinds", "what", "--", *KERNEL),
        ("--explain", "--real", "/nonexistent", "--hypervisor-version=53.0", "--", *KERNEL),
        ("--explain", "--real", "/nonexistent", "--", *KERNEL),
        (*CHECK, "--", *KERNEL),
    ]
    alone = [run(*words) for words in asked]
    assert answers(*(question(*words) for words in asked)) == [
        {"status": done.returncode, "output": done.stdout, "error": done.stderr} for done in alone
    ]
    assert [done.returncode for done in alone] == [0, Exit.USAGE, Exit.USAGE, 0, Exit.HYPERVISOR, 0]


@pytest.mark.parametrize(
    "words",
    [
        ("--real", "/bin/true", "--", *KERNEL),
        ("--real", "/bin/true", "--", *KERNEL, "--check"),
        ("--real", "/bin/true", "--", "--version"),
        ("--root-program", "/bin/true"),
        ("--root-program", "--check"),
        ("--push", "--vm", "web", "--check"),
        ("--spec", "/vm.toml", "--tap-up", "--check"),
        ("--questions", "--check"),
        (),
    ],
)
def test_nothing_but_a_question_is_done(words: tuple[str, ...]) -> None:
    """Whatever starts, pushes, or works on the host is refused, and the next question is answered."""
    first, second = answers(question(*words), question(*CHECK, "--", *KERNEL))
    assert (first["status"], second["status"]) == (Exit.USAGE, 0)


@pytest.mark.parametrize(
    "line",
    ["", "[]", "{}", "[" * 100_000, '{"directory": "/", "words": "x"}', '{"directory": 1, "words": []}']
    + [question(*CHECK, "--", *KERNEL, directory=each) for each in ("/nonexistent", "\0")]
    + ['{"directory": "/", "words": ["--check", 1]}'],
)
def test_a_line_that_is_no_question(line: str) -> None:
    """It is refused, and keeps no other line from an answer."""
    first, second = answers(line, question(*CHECK, "--", *KERNEL))
    assert (first["status"], second["status"]) == (Exit.USAGE, 0)
    assert first["error"].startswith("credferry-launch: ")


def test_a_question_is_asked_in_its_own_directory(tmp_path: Path) -> None:
    """A spec with a path relative to the VM's directory is found there, for each VM."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "b/vm.toml").write_text("x")
    words = ("--spec", "vm.toml", "--explain")
    first, second = answers(*(question(*words, directory=str(tmp_path / each)) for each in "ab"))
    assert "No such file" in first["error"]
    assert "No such file" not in second["error"]
    assert second["status"] == Exit.USAGE
