# SPDX-License-Identifier: MIT
"""The demonstration is a test: each of its steps is required to be seen."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from tests.support.host import patience, wait_until

CHECKOUT = Path(__file__).parents[2]


def test_the_demo_shows_the_main_job() -> None:
    """Rotated secrets reach the running guest that uses them, and only that one; what is printed says so."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.demo"], cwd=CHECKOUT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "✓ no VM was restarted; sealed-vm was left alone" in done.stdout
    assert "nothing is left behind" in done.stdout


def test_an_interrupted_demo_leaves_nothing(tmp_path: Path) -> None:
    """Ctrl-C while VMs start: one line, no traceback, no process and no file is left."""
    demo = subprocess.Popen(
        [sys.executable, "-m", "tests.demo"],
        cwd=CHECKOUT,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert demo.stdout
    for line in demo.stdout:
        if "Sealed, then started" in line:
            os.killpg(demo.pid, signal.SIGINT)  # as a terminal does
            break
    printed, errors = demo.communicate(timeout=120 * patience())
    assert printed.strip().splitlines()[-1] == "── Interrupted; nothing is left behind"
    assert (demo.returncode, errors) == (130, "")
    assert list(tmp_path.iterdir()) == []
    wait_until(lambda: not is_left(demo.pid), 30, "the end of all processes of the demo")


def is_left(group: int) -> bool:
    """Whether a process group has processes that run, and not only ones that wait for their parent."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended since
            state, _, its_group, *_ = stat.read_text().rpartition(") ")[2].split()
            if state != "Z" and int(its_group) == group:
                return True
    return False
