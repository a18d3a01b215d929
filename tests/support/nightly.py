# SPDX-License-Identifier: MIT
"""Variants and repetitions of slow tests that only ``make nightly`` runs. ``make test`` has fewer."""

from __future__ import annotations

import os
from typing import Final, TypeVar

NIGHTLY: Final = "CREDFERRY_NIGHTLY"
"""The environment variable that ``make nightly`` sets."""

IS_NIGHT: Final = bool(os.environ.get(NIGHTLY))
_T = TypeVar("_T")


def variants(usual: _T, *more: _T) -> list[_T]:
    """The variants of a test in this run: the usual one, and at night the others as well."""
    return [usual, *(more if IS_NIGHT else ())]


def times(usual: int, nightly: int) -> int:
    """How many times a slow test repeats its steps in this run."""
    return nightly if IS_NIGHT else usual
