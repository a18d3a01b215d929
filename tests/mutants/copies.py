# SPDX-License-Identifier: MIT
"""Copies of the checkout, in which code may be broken."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

CHECKOUT: Final = Path(__file__).resolve().parents[2]
_PARTS: Final = ("agent", "launcher", "tests", "contrib", "docs", "benchmarks")
_FILES: Final = (
    "pyproject.toml",
    "SECURITY.md",
    "README.md",
    "CHANGELOG.md",
    "Makefile",
    "LICENSE",
    "flake.nix",
)


def make(target: Path) -> Path:
    """A copy of the checkout's files at ``target``, which is emptied first. Returns ``target``."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for part in _PARTS:
        shutil.copytree(
            CHECKOUT / part, target / part, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
        )
    for file in _FILES:
        shutil.copy2(CHECKOUT / file, target / file)
    return target
