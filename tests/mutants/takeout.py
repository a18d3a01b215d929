# SPDX-License-Identifier: MIT
"""Takes protections out, one at a time, and sees whether the tests that claim them fail."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.mutants import copies

if TYPE_CHECKING:
    from pathlib import Path

    from tests.mutants.row import Edit, Protection

_FAILED = 1
"""pytest's exit status where tests ran and some failed; an error of collection has another."""
_SECONDS = 900
_REASON_MAX = 200


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one test did without the protection. ``noticed``: it failed. ``said``: how, in a line."""

    protection: str
    test: str
    noticed: bool
    said: str


def apply(edit: Edit, root: Path) -> None:
    """Make one change in a copy. Raises `ValueError` where its text is not there exactly once."""
    path = root / edit.file
    text = path.read_text(encoding="utf-8")
    if text.count(edit.old) != 1:
        raise ValueError(
            f"{edit.file}: the protection's text is there {text.count(edit.old)} times, not once"
        )
    path.write_text(text.replace(edit.old, edit.new), encoding="utf-8")


def run(protection: Protection, directory: Path) -> list[Outcome]:
    """Take a protection out of a fresh copy below ``directory``; one outcome per named test.

    The tests first have to pass with the protection in place: `make test` sees to that.
    """
    root = copies.make(directory / re.sub(r"\W+", "-", protection.name))
    for edit in protection.edits:
        apply(edit, root)
    outcomes = []
    for test in protection.tests:
        ended = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", test],
            cwd=root,
            env={
                **os.environ,
                "PYTHONPATH": str(root / "tests/support/path"),
                "PYTHONDONTWRITEBYTECODE": "1",
                "CI": "true",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
        noticed = ended.returncode == _FAILED and " failed" in ended.stdout
        outcomes.append(Outcome(protection.name, test, noticed=noticed, said=reason(ended.stdout)))
    return outcomes


def reason(output: str) -> str:
    """Why a test failed, as pytest sums it up; else pytest's last line."""
    lines = output.strip().splitlines() or [""]
    failures = [line.partition(" - ")[2] for line in lines if line.startswith("FAILED ")]
    return (failures or [lines[-1]])[0][:_REASON_MAX]
