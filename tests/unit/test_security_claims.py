# SPDX-License-Identifier: MIT
"""SECURITY.md: each claim names tests, and these exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING

from tests.mutants.protections import PROTECTIONS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.mutants.row import Protection

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


def named() -> set[str]:
    """Each test that the page names, as pytest takes it."""
    return {f"{file}::{name}" for _, tests in claims() for file, name in tests}


def unproved(tests: Iterable[str], protections: Iterable[Protection]) -> set[str]:
    """The tests that no protection's row has."""
    return set(tests) - {test for each in protections for test in each.tests}


def test_each_test_is_tried_without_its_protection() -> None:
    """Each test that the page names stands in the mutation run's table."""
    assert unproved(named(), PROTECTIONS) == set()


def test_a_test_that_no_row_has_is_found() -> None:
    """A test that loses its only row is found."""
    dropped, *others = PROTECTIONS
    lost = set(dropped.tests) & named()
    assert lost
    assert unproved(named(), others) == lost
