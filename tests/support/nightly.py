# SPDX-License-Identifier: MIT
"""Variants of slow tests that only ``make nightly`` runs. ``make test`` shows the usual ones."""

from __future__ import annotations

import os
from typing import Final, TypeVar

NIGHTLY: Final = "CREDFERRY_NIGHTLY"
"""The environment variable that ``make nightly`` sets."""

_T = TypeVar("_T")


def variants(usual: _T, *more: _T) -> list[_T]:
    """The variants of a test in this run: the usual one, and at night the others as well."""
    return [usual, *(more if os.environ.get(NIGHTLY) else ())]
