# SPDX-License-Identifier: MIT
"""SECURITY.md: each claim names tests, and these exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_TEST = re.compile(r"`(tests/[^`:]+\.py)::(\w+)`")


def claims() -> list[tuple[str, list[tuple[str, str]]]]:
    """Each claim, with the files and names of its tests."""
    rows = re.findall(r"^\|(?! *attacker|-)[^|]*\|([^|]*)\|([^|]*)\|$", document(), re.MULTILINE)
    return [(claim.strip(), _TEST.findall(tests)) for claim, tests in rows]


def document() -> str:
    """The page."""
    return (ROOT / "SECURITY.md").read_text(encoding="utf-8")


def test_each_claim_names_a_test_that_exists() -> None:
    """A claim without a test, or with one that was renamed, is found."""
    table = claims()
    assert len(table) == len([line for line in document().splitlines() if line.startswith("|")]) - 2
    for claim, tests in table:
        assert tests, claim
        for file, name in tests:
            tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
            assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, claim


def test_whatever_looks_like_a_test_is_one() -> None:
    """No name of a test is written in a way that is not checked."""
    assert len(re.findall(r"tests/\S*", document())) == sum(len(tests) for _, tests in claims())
