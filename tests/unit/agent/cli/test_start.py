# SPDX-License-Identifier: MIT
"""How quickly a verb is there, as far as its imports decide it."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.installation import CHECKOUT

if TYPE_CHECKING:
    from pathlib import Path

SLOW = {"asyncio", "prometheus_client", "pydantic", "requests", "rich", "structlog", "watchdog"}
"""Each takes 20 to 250 ms, of the 300 that a short verb takes with Python's own start."""

_MAIN = f"""
import sys
sys.path.insert(0, "{CHECKOUT}/tests/support/path")
from credferry.agent.cli import main
main()
"""


@pytest.mark.parametrize(
    "verb", ["status", "plan", "sync", "check", "hold web", "show web", "audit", "reload"]
)
def test_a_verb_loads_nothing_slow(tmp_path: Path, verb: str) -> None:
    """A verb without a message to log does not load structlog, and nothing that only the daemon needs."""
    words = [*verb.split(), "--config", str(tmp_path / "none.toml")]
    # Python writes a line at each import. A list at the end would be missing when the verb ends by `_exit`,
    # as it does when a thread of it is still there.
    command = [sys.executable, "-X", "importtime", "-c", _MAIN, *words]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    lines = (line for line in ended.stderr.splitlines() if line.startswith("import time:"))
    loaded = {line.rpartition("|")[2].strip() for line in lines}
    assert "credferry.agent.cli.common" in loaded, ended.stderr
    assert loaded & SLOW == set()
