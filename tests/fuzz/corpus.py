# SPDX-License-Identifier: MIT
"""The inputs that are kept: those of the repository, replayed by the tests, and the cache's, which grow."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.support.cache import cache_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import FrameType

    from tests.fuzz.target import Target

COMMITTED: Final = Path(__file__).parent / "corpus"
_ROOT: Final = Path(__file__).parents[2]
_OURS: Final = (f"{_ROOT / 'agent'}/", f"{_ROOT / 'launcher'}/")
_LENGTH_MAX: Final = 1024
"""Bytes of an input that is worth a place in the repository; those put there by hand may be longer."""


def committed(target: Target) -> Path:
    """The repository's inputs for a target: seeds, what runs have found, and each input that was a bug's."""
    return COMMITTED / target.name


def cached(target: Target) -> Path:
    """Where a target's new inputs are kept from one long run to the next."""
    path = cache_directory() / "fuzz" / "corpus" / target.name
    path.mkdir(parents=True, exist_ok=True)
    return path


def findings() -> Path:
    """Where inputs are put that break a target."""
    return cache_directory() / "fuzz" / "findings"


def inputs(directory: Path) -> list[Path]:
    """The inputs in a directory, always in the same order."""
    return sorted(path for path in directory.glob("*") if path.is_file())


def keep(target: Target) -> int:
    """Copy into the repository's corpus what reaches lines by ways on which its inputs do not; how many."""
    reached: set[tuple[str, int, int]] = set()
    for path in inputs(committed(target)):
        reached |= ways(target.run, path.read_bytes())
    kept = 0
    found = sorted(
        (path.read_bytes() for path in inputs(cached(target))), key=lambda data: (len(data), data)
    )
    for data in found:
        new = ways(target.run, data) - reached if len(data) <= _LENGTH_MAX else set()
        if new:
            reached |= new
            kept += 1
            name = f"found-{hashlib.sha256(data).hexdigest()[:8]}"
            committed(target).joinpath(name).write_bytes(data)
    return kept


def ways(run: Callable[[bytes], None], data: bytes) -> set[tuple[str, int, int]]:
    """Which lines of agent and launcher follow on which, as an input runs."""
    seen: set[tuple[str, int, int]] = set()

    def local(file: str, frame: FrameType) -> Callable[[FrameType, str, object], object]:
        last = frame.f_lineno

        def line(frame: FrameType, event: str, _argument: object) -> object:
            nonlocal last
            if event == "line":
                seen.add((file, last, frame.f_lineno))
                last = frame.f_lineno
            return line

        return line

    def call(frame: FrameType, _event: str, _argument: object) -> object:
        file = frame.f_code.co_filename
        return local(file, frame) if file.startswith(_OURS) else None

    before = sys.gettrace()
    sys.settrace(call)  # type: ignore[arg-type]  # its stub wants the trace function's own, recursive type
    try:
        run(data)
    finally:
        sys.settrace(before)
    return seen


def size(directories: Iterable[Path]) -> int:
    """Bytes of all inputs in these directories."""
    return sum(path.stat().st_size for directory in directories for path in inputs(directory))
