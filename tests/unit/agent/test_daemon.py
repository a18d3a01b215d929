# SPDX-License-Identifier: MIT
"""The daemon's start: what its command line may say, and what it does without."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.modules import MODULES

DEFAULT, NAMED, OTHER = "/nonexistent/default.toml", "/nonexistent/named.toml", "/nonexistent/other.toml"
AGENT = f"""
from pathlib import Path
from credferry.agent.config import model
model.DEFAULT_PATH = Path("{DEFAULT}")  # this machine may have the real one
from credferry.agent.cli import main
main()
"""

THREAD = """
import atexit, threading
atexit.register(print, "the interpreter ends")
threading.Thread(target=threading.Event().wait, daemon=True).start()
"""


def python(code: str, *words: str, **environment: str) -> list[str]:
    """A command line of Python's with the checkout's modules, and an environment."""
    assignments = [f"{name}={value}" for name, value in environment.items()]
    code = f"import sys; sys.path[:0] = [{str(MODULES)!r}]\n{code}"
    return ["env", "--unset=CREDFERRY_CONFIG", *assignments, sys.executable, "-I", "-c", code, *words]


@pytest.mark.parametrize(
    ("words", "variable", "read"),
    [
        ((), None, DEFAULT),
        ((), "", DEFAULT),
        ((), NAMED, NAMED),
        (("--config", NAMED), None, NAMED),
        (("--config", NAMED), OTHER, NAMED),
        (("-c", NAMED), None, NAMED),
        ((f"--config={NAMED}",), OTHER, NAMED),  # those from here on are typer's
        ((f"-c{NAMED}",), None, NAMED),
        (("--config", OTHER, "--config", NAMED), None, NAMED),
    ],
)
def test_which_configuration_is_read(words: tuple[str, ...], variable: str | None, read: str) -> None:
    """However it is said, the same file is read; as there is none, that ends the agent with one line."""
    environment = {} if variable is None else {"CREDFERRY_CONFIG": variable}
    command = python(AGENT, "agent", *words, **environment)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 78
    assert done.stderr.startswith(f"credferry: {read}: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("words", [("--config",), ("more",), ("--config", NAMED, "more"), ("--unknown",)])
def test_what_makes_no_sense_is_told(words: tuple[str, ...]) -> None:
    """A command line that units do not have ends as any other verb's does."""
    done = subprocess.run(python(AGENT, "agent", *words), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Error" in done.stderr


@pytest.mark.parametrize(("verb", "status"), [("--version", 0), ("agent", 78)])
def test_the_interpreter_does_not_end_under_a_thread(verb: str, status: int) -> None:
    """The process ends at once if a thread is left, with its status, and with all that it has printed."""
    done = subprocess.run(python(THREAD + AGENT, verb), capture_output=True, text=True, check=False)
    assert done.returncode == status
    assert done.stdout + done.stderr
    assert "the interpreter ends" not in done.stdout


def test_output_that_cannot_be_written_is_a_failure() -> None:
    """If the disk is full, the command says so, and its status is not 0."""
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        command = python(THREAD + AGENT, "--version")
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "credferry: cannot write its output: No space left on device\n"


def test_no_standard_output() -> None:
    """Without a standard output, the status is the verb's."""
    command = ["sh", "-c", 'exec "$@" >&-', "sh", *python(THREAD + AGENT, "agent", "--config", NAMED)]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 78
    assert done.stderr.count("\n") == 1
