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

_TELLING = f"""
import sys
sys.path.insert(0, "{CHECKOUT}/tests/support/path")
from credferry.agent.cli import main
try:
    main()
finally:
    print("\\n".join(sys.modules))
"""


@pytest.mark.parametrize(
    "verb", ["status", "plan", "sync", "check", "hold web", "show web", "audit", "reload"]
)
def test_a_verb_loads_nothing_slow(tmp_path: Path, verb: str) -> None:
    """A verb without a message to log does not load structlog, and nothing that only the daemon needs."""
    words = [*verb.split(), "--config", str(tmp_path / "none.toml")]
    ended = subprocess.run(
        [sys.executable, "-c", _TELLING, *words], check=False, capture_output=True, text=True
    )
    loaded = set(ended.stdout.splitlines())
    assert "credferry.agent.cli.common" in loaded, ended.stderr
    assert loaded & SLOW == set()
