# SPDX-License-Identifier: MIT
"""The core modules' scores as a table, kept from run to run for docs/reliability.md."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from tests.mutants.core import MODULES, Score
from tests.support.cache import cache_directory

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

HEAD: Final = (
    "| module | mutants | noticed | % | survivors listed |",
    "|---|---:|---:|---:|---:|",
)


def table(scores: Iterable[Score]) -> list[str]:
    """The lines of the table, one row a module."""
    return [*HEAD, *(row(score) for score in scores)]


def row(score: Score) -> str:
    """One row. The share is rounded down, so that 100 means all."""
    share = int(100 * score.share)
    return f"| {score.module} | {score.counted} | {score.noticed} | {share} | {score.listed} |"


def note_score(score: Score) -> None:
    """Keep a module's score in place of the one before it."""
    kept = {each.module: each for each in (*noted_scores(), score)}
    fields = {each.module: [each.counted, each.noticed, each.listed] for each in kept.values()}
    _file().write_text(json.dumps(fields, indent=2, sort_keys=True), encoding="utf-8")


def noted_scores() -> list[Score]:
    """The scores that were kept, of modules that are still core modules, in their order."""
    try:
        fields = json.loads(_file().read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    return [Score(module, *fields[module]) for module in MODULES if module in fields]


def _file() -> Path:
    return cache_directory() / "mutants.json"
