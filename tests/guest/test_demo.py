# SPDX-License-Identifier: MIT
"""The demonstration is a test: each of its steps is required to be seen."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]


def test_the_demo_shows_the_main_job() -> None:
    """Rotated secrets reach the running guest that uses them, and only that one; what is printed says so."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.demo"], cwd=CHECKOUT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "✓ no VM was restarted; sealed-vm was left alone" in done.stdout
    assert "nothing is left behind" in done.stdout
