# SPDX-License-Identifier: MIT
"""A row of the table of protections."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Edit:
    """A text that stands exactly once in a file, and what takes its place."""

    file: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Protection:
    """One protection. Without it, each of these tests must fail.

    ``tests`` are SECURITY.md's: each test that the page names stands in at least one row.
    """

    name: str
    edits: tuple[Edit, ...]
    tests: tuple[str, ...]
