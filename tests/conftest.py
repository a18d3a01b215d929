# SPDX-License-Identifier: MIT
"""Tiers of tests: those below ``tests/host`` and ``tests/guest`` need root and whole systems."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import pytest_timeout  # type: ignore[import-untyped]  # no stubs exist for it
from hypothesis import HealthCheck, settings

from tests.support import boot
from tests.support.host import PATIENCE_MAX
from tests.support.nightly import IS_NIGHT

_TESTS = Path(__file__).parent
# No test depends on speed: neither an example's own time, nor that of making it, which a busy machine slows.
settings.register_profile("credferry", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("credferry")
# Boots emulated machines, which takes longer than all other tests together.
collect_ignore = [] if IS_NIGHT else ["host/test_tpm_host.py"]
pytest_plugins = ["tests.support.fixtures", "tests.support.session"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with the tier that its directory says."""
    for item in items:
        for tier in ("host", "guest"):
            if item.path.is_relative_to(_TESTS / tier):
                item.add_marker(tier)


@pytest.hookimpl(optionalhook=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: pytest_timeout.Settings) -> bool:
    """Give each test as much more time as the deadlines of its own waits may get."""
    settings = settings._replace(timeout=settings.timeout * PATIENCE_MAX)
    return bool(pytest_timeout.pytest_timeout_set_timer(item, settings))


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
