# SPDX-License-Identifier: MIT
"""The pages for people who change the code name files and functions that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs.generate.architecture import below, main_arrows
from tests.support.rooms import ARROWS

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("CONTRIBUTING.md", "docs/architecture.md", "SECURITY.md", "docs/reference.md")
_FILE = re.compile(r"`((?:agent|launcher)/[a-z_0-9/]*\.py)`")
_ROW = re.compile(r"\| [^|]* \| `([A-Za-z_.]+)` \| `((?:agent|launcher)/[a-z_0-9/]+\.py)` \|")


@pytest.mark.parametrize("page", PAGES)
def test_each_file_that_a_page_names_is_there(page: str) -> None:
    """A module that is renamed or moved leaves no page behind."""
    named = _FILE.findall((ROOT / page).read_text(encoding="utf-8"))
    assert [each for each in named if not (ROOT / each).is_file()] == []


def test_the_way_of_one_secret_names_functions_that_are_there() -> None:
    """Each step stands in the file that the row names."""
    rows = _ROW.findall((ROOT / "docs/architecture.md").read_text(encoding="utf-8"))
    assert len(rows) > 10
    for name, file in rows:
        text = (ROOT / file).read_text(encoding="utf-8")
        for part in name.split("."):
            assert re.search(rf"(?m)^\s*(?:def|class) {part}\b", text), f"{file}: {name}"


def test_the_picture_leaves_out_only_arrows_that_a_longer_way_replaces() -> None:
    """What a room reaches in the picture is what it reaches in the table, and each drawn arrow is needed."""
    drawn = main_arrows()
    assert len(drawn) <= 30

    def reached(name: str, arrows: list[tuple[str, str]]) -> set[str]:
        found: set[str] = set()
        for start, end in arrows:
            if start == name:
                found |= {end} | reached(end, arrows)
        return found

    for name in ARROWS:
        assert reached(name, drawn) == {each for each in below(name) if ARROWS[each]}
    for each in drawn:
        assert each[1] in ARROWS[each[0]]
        assert each[1] not in reached(each[0], [other for other in drawn if other != each])
