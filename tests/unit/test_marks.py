# SPDX-License-Identifier: MIT
"""Each mark that silences a check of the code has its reason beside it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TREES = ("agent", "benchmarks", "contrib", "docs", "launcher", "tests")
BARE = re.compile(r"# (?:noqa|type: ignore)(?:: [A-Z0-9, ]+|\[[^]]*\])?[ \t]*$", re.MULTILINE)
FILES = sorted(path for tree in TREES for path in (ROOT / tree).rglob("*.py"))


def test_each_mark_has_a_reason() -> None:
    """In parentheses after ``noqa``, or as a comment after ``type: ignore``."""
    bare = [
        f"{path.relative_to(ROOT)}: {found[0]}"
        for path in FILES
        for found in BARE.finditer(path.read_text(encoding="utf-8"))
    ]
    assert bare == []


@pytest.mark.parametrize(
    ("line", "is_bare"),
    [
        ("import x  # " + "noqa: F401", True),
        ("import x  # " + "noqa: F401 (for its effect)", False),
        ("x = 1  # " + "type: ignore[misc]", True),
        ("x = 1  # " + "type: ignore[misc]  # a default binds it", False),
    ],
)
def test_what_a_bare_mark_is(line: str, is_bare: bool) -> None:
    """A rule alone is no reason."""
    assert bool(BARE.search(line)) is is_bare
