# SPDX-License-Identifier: MIT
"""Parsers of bytes that others wrote: all inputs that were ever of interest, and a short run for more."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.fuzz import corpus
from tests.fuzz.target import MARKER, check_silent
from tests.fuzz.targets import TARGETS
from tests.support.modules import MODULES

if TYPE_CHECKING:
    from tests.fuzz.target import Target

ROOT = Path(__file__).parents[2]
RUNS = 2500
"""Inputs for each target in the short run."""
CORPUS_MAX = 300 << 10
PLANTED = """\
import sys
import atheris
from tests.fuzz.command import main
from tests.fuzz.target import Target

@atheris.instrument_func
def planted(data):
    if len(data) > 2 and data[0] == 0x62:
        if data[1] == 0x75:
            if data[2] == 0x67:
                raise KeyError("planted")

sys.exit(main({"planted": Target("planted", planted)}, sys.argv[1:]))
"""
needs_atheris = pytest.mark.skipif(
    platform.machine() != "x86_64" or sys.version_info >= (3, 14), reason="atheris has no wheel for this"
)


@pytest.mark.parametrize("target", TARGETS.values(), ids=list(TARGETS))
def test_every_kept_input_is_taken_or_refused_as_it_should(target: Target) -> None:
    """Seeds, what runs have found, and the input of each bug that there was."""
    kept = corpus.inputs(corpus.committed(target))
    assert kept
    for path in kept:
        try:
            target.run(path.read_bytes())
        except Exception as error:
            error.add_note(f"input: {path}")
            raise


def test_the_corpus_is_small_and_every_part_of_it_is_used() -> None:
    """It stays below its bound, and no directory is left over from a target that is no more."""
    directories = [path for path in corpus.COMMITTED.iterdir() if path.is_dir()]
    assert {path.name for path in directories} == set(TARGETS)
    assert corpus.size(directories) <= CORPUS_MAX


def test_a_refusal_that_shows_a_value_is_a_finding() -> None:
    """As it is, in Base64, and in an error's hint."""
    for text in (f"bad {MARKER}!", "cXo3bWFya2VyMHZhbHVl"):
        with pytest.raises(AssertionError):
            check_silent(ValueError(text))
    hinted = ValueError("bad")
    hinted.hint = MARKER  # type: ignore[attr-defined]  # as our own errors have it
    with pytest.raises(AssertionError):
        check_silent(hinted)


@needs_atheris
def test_new_inputs_break_nothing() -> None:
    """A short real run of every target, the same each time."""
    done = fuzz("-m", "tests.fuzz", "--fresh", "--seed", "1", "--runs", str(RUNS))
    assert done.returncode == 0, done.stdout + done.stderr
    ran = dict(re.findall(r"(?m)^([a-z-]+) +[0-9]+ s ([0-9]+) inputs, good$", done.stdout))
    assert ran.keys() == TARGETS.keys()
    assert all(int(inputs) >= RUNS for inputs in ran.values())


@needs_atheris
def test_a_bug_is_found_and_its_input_kept(tmp_path: Path) -> None:
    """One behind three bytes: status 1, the traceback, and a file with the input that breaks it.

    So short a run does not stand on the page of reliability.
    """
    script = tmp_path / "planted.py"
    script.write_text(PLANTED)
    # A bound on inputs, not on time: the same seed finds it after 31,000, however slow the machine is.
    done = fuzz(str(script), "--fresh", "--seed", "1", "--runs", "1000000", cache=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "KeyError: 'planted'" in done.stdout
    found = re.search(r"(?m)^input: (.+)$", done.stdout)
    assert found is not None
    assert Path(found[1]).read_bytes().startswith(b"bug")
    assert not (tmp_path / "numbers.json").exists()


def fuzz(*words: str, cache: Path | None = None) -> subprocess.CompletedProcess[str]:
    """A run of the fuzzer as a process of its own, as `make fuzz` has it."""
    kept = {"CREDFERRY_CACHE": str(cache)} if cache is not None else {}
    return subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{MODULES}", **kept},
        capture_output=True,
        text=True,
        check=False,
    )
