# SPDX-License-Identifier: MIT
"""How many generations of a VM the store keeps, and which of them it removes."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

from credferry.agent.errors import UnlistableError
from credferry.agent.store.files import store_error
from credferry.launcher.handoff import GENERATION_MAX

if TYPE_CHECKING:
    from collections.abc import Container, Iterable
    from pathlib import Path

    from credferry.agent.store.sealed_files import SealedFiles

KEEP = 3
"""Generations kept for each VM, the current one included."""


def generation_numbers(generations: Path) -> list[int]:
    """The numbers of all generations in a VM's directory of them, whole or not, in any order.

    Empty where there is no such directory. Raises `UnlistableError` where it cannot be listed.
    """
    try:
        names = [path.name for path in generations.iterdir()]
    except FileNotFoundError:
        return []
    except OSError as error:
        failure = store_error(generations, error)
        raise UnlistableError(str(failure), hint=failure.hint) from None
    numbers = [int(name) for name in names if name.isascii() and name.isdigit()]
    return [number for number in numbers if number < GENERATION_MAX]


@dataclass(frozen=True, slots=True)
class Retention:
    """Removes the generations that no rollback needs."""

    files: SealedFiles
    _whole: dict[Path, set[int]] = field(default_factory=dict)
    """By directory: generations that are known to be whole. To open all of them each time would be slow."""

    def prune(self, generations: Path, current: int, keep: Container[int]) -> list[int]:
        """Remove generations of a VM. Returns the numbers of those that stay. Raises `StoreError`.

        The newest whole generations stay (`KEEP`, with the current one), and those in ``keep``. After a
        rollback there are newer ones than the current one. As many of them stay: so the highest number is
        never used again, and what failed again and again does not fill the store.
        """
        numbers = sorted(generation_numbers(generations), reverse=True)
        known = self._whole.get(generations, set()) | {current}
        older = self._newest_whole(generations, [each for each in numbers if each <= current], known)
        newer = self._newest_whole(generations, [each for each in numbers if each > current], known)
        kept = self._whole[generations] = older | newer
        for number in numbers:
            if number not in kept and number not in keep:
                shutil.rmtree(generations / str(number), ignore_errors=True)
        return [number for number in numbers if number in kept or number in keep]

    def _newest_whole(self, generations: Path, numbers: Iterable[int], known: Container[int]) -> set[int]:
        """The first `KEEP` of these generations that are whole, as those in ``known`` are.

        A half-written generation, left by a crash, must not replace one that a rollback could use.
        """
        whole = (
            each
            for each in numbers
            if each in known or not self.files.is_half_written(generations / str(each))
        )
        return set(islice(whole, KEEP))
