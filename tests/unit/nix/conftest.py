# SPDX-License-Identifier: MIT
"""Nix where it is; in CI its absence is a failure, as nothing would have been shown."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.support.nix import Nix, missing

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def nix(tmp_path: Path) -> Nix:
    """An evaluator of its own for each test."""
    lacking = missing()
    if lacking is not None and os.environ.get("CI", "").lower() in {"1", "true", "yes"}:
        pytest.fail(lacking, pytrace=False)
    if lacking is not None:
        pytest.skip(lacking)
    return Nix(tmp_path)
