# SPDX-License-Identifier: MIT
"""docs/reliability.md shows each number, says where it comes from, and changes only where a number does."""

from __future__ import annotations

import re

import pytest

from tests.mutants.core import MODULES, Score
from tests.reliability import PAGE, SOURCES, is_well_formed, render
from tests.support.numbers import Number

WHEN = "2026-03-01T12:00:00+00:00"


@pytest.fixture(scope="module")
def page() -> str:
    """The page as it is committed."""
    return PAGE.read_text(encoding="utf-8")


def test_the_page_is_of_its_form(page: str) -> None:
    """The committed page is what would be rendered now, whatever its numbers."""
    assert is_well_formed(page), "run: make reliability"


def test_its_rows_are_the_numbers(page: str) -> None:
    """Each number has one row and one explanation, in their order, and nothing else has."""
    table = page.partition("\n## ")[0]
    assert re.findall(r"^\| ([^|]+?) \|", table, re.MULTILINE)[1:] == [number.value for number in Number]
    assert re.findall(r"^- \*\*(.+?)\*\*:", page, re.MULTILINE) == [number.value for number in Number]


@pytest.mark.parametrize("number", Number)
def test_a_number_comes_from_where_it_says(number: Number) -> None:
    """The file that a number is said to come from is there."""
    assert (PAGE.parents[1] / SOURCES[number].path).is_file()


def test_a_number_changes_its_own_row(page: str) -> None:
    """A number that a run has kept replaces the one before it, with its day, and touches no other line."""
    before = render({Number.FAULTS: (7, WHEN)}, page)
    after = render({Number.FAULTS: (12345, "2026-03-02T01:02:03+00:00")}, before)
    differing = [
        pair for pair in zip(before.splitlines(), after.splitlines(), strict=True) if len(set(pair)) > 1
    ]
    what = Number.FAULTS.value
    assert differing == [(f"| {what} | 7 | 2026-03-01 |", f"| {what} | 12,345 | 2026-03-02 |")]
    assert is_well_formed(after)


def test_the_same_number_has_the_day_of_its_last_run(page: str) -> None:
    """A later run with the same result changes the day. A run that keeps no number changes nothing."""
    before = render({Number.LEAKS: (0, WHEN), Number.SECURITY_SCORE: (0.8, WHEN)}, page)
    after = render({Number.LEAKS: (0, "2026-04-01T12:00:00+00:00")}, before)
    what = Number.LEAKS.value
    assert after == before.replace(f"| {what} | 0 | 2026-03-01 |", f"| {what} | 0 | 2026-04-01 |")
    assert render({}, before) == before


def test_a_score_changes_its_own_row(page: str) -> None:
    """A core module's score replaces the one before it, and the table has one row for each core module."""
    before = render({}, page, [Score(module, 10, 9, 1) for module in MODULES])
    assert [line for line in before.splitlines() if line.endswith("| 10 | 9 | 90 | 1 |")] == [
        f"| {module} | 10 | 9 | 90 | 1 |" for module in MODULES
    ]
    after = render({}, before, [Score("agent/store/generations.py", 1000, 999, 1)])
    assert set(after.splitlines()) - set(before.splitlines()) == {
        "| agent/store/generations.py | 1000 | 999 | 99 | 1 |"
    }
    assert is_well_formed(after)


def test_another_form_is_told(page: str) -> None:
    """A row that is missing, renamed or added by hand, or an edited text, is found."""
    row = next(line for line in page.splitlines() if Number.LEAKS.value in line)
    for other in (
        page.replace(row + "\n", ""),
        page.replace(row, row + "\n| more | 1 | |"),
        page + "more\n",
    ):
        assert other != page
        assert not is_well_formed(other)
