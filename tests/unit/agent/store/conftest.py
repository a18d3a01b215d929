# SPDX-License-Identifier: MIT
"""An empty store for each test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from credferry.agent.store.generations import Store
from tests.support.generations import KEY

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(tmp_path / "state", KEY)
