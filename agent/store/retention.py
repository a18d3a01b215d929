# SPDX-License-Identifier: MIT
"""How many generations of a VM the store keeps, and which of them it removes."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

from credferry.launcher.handoff import GENERATION_MAX

if TYPE_CHECKING:
    from collections.abc import Container
    from pathlib import Path

    from credferry.agent.store.sealed_files import SealedFiles

KEEP = 3
"""Generations kept for each VM, the current one included."""


def generation_numbers(generations: Path) -> list[int]:
    """The numbers of all generations in a VM's directory of them, whole or not, in any order."""
    try:
        names = [path.name for path in generations.iterdir()]
    except OSError:
        return []
    numbers = [int(name) for name in names if name.isascii() and name.isdigit()]
    return [number for number in numbers if number < GENERATION_MAX]


@dataclass(frozen=True, slots=True)
class Retention:
    """Removes the generations that no rollback needs."""

    files: SealedFiles
    _whole: dict[Path, set[int]] = field(default_factory=dict)
    """By directory: generations that are known to be whole. To open all of them each time would be slow."""

    def prune(self, generations: Path, current: int, keep: Container[int]) -> None:
        """Remove generations of a VM after a new one, ``current``, has been written whole.

        The newest whole generations stay (`KEEP`, with the current one), and those in ``keep``.
        """
        numbers = sorted(generation_numbers(generations), reverse=True)
        older = (number for number in numbers if number <= current)
        # A half-written generation, left by a crash, must not replace one that a rollback could use.
        known = self._whole.get(generations, set()) | {current}
        whole = (
            each
            for each in older
            if each in known or not self.files.is_half_written(generations / str(each))
        )
        kept = self._whole[generations] = set(islice(whole, KEEP))
        for number in numbers:
            if number not in kept and number not in keep:
                shutil.rmtree(generations / str(number), ignore_errors=True)
