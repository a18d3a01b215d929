# SPDX-License-Identifier: MIT
"""Tiers of tests: those below ``tests/host`` and ``tests/guest`` need root and whole systems."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import boot

if TYPE_CHECKING:
    from types import FrameType

_TESTS = Path(__file__).parent
pytest_plugins = ["tests.support.fixtures"]


def pytest_configure() -> None:
    """Let SIGTERM end the run as Ctrl-C does: in order, with every fixture's end."""
    signal.signal(signal.SIGTERM, _interrupt)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with the tier that its directory says; the quick tiers come first."""
    for item in items:
        tier = _tier(item)
        if tier in {"host", "guest"}:
            item.add_marker(tier)
    order = ("unit", "property", "host", "guest")
    items.sort(key=lambda item: order.index(_tier(item)) if _tier(item) in order else 0)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a tier that cannot run here; in CI that is a failure, as nothing would have been shown."""
    lacking = None
    if item.get_closest_marker("host") or item.get_closest_marker("guest"):
        lacking = boot.missing()
    if lacking is None and item.get_closest_marker("guest") and not shutil.which("qemu-system-x86_64"):
        lacking = "no qemu-system-x86_64 (run tests/support/bootstrap full)"
    if lacking is None:
        return
    reason = f"whole systems cannot boot here: {lacking}"
    if os.environ.get("CI", "").lower() in {"1", "true", "yes"}:
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def _tier(item: pytest.Item) -> str:
    return item.path.relative_to(_TESTS).parts[0] if item.path.is_relative_to(_TESTS) else ""


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
