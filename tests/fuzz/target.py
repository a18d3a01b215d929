# SPDX-License-Identifier: MIT
"""What a target of the fuzzer is, and what its inputs have in place of a secret."""

from __future__ import annotations

import atexit
import base64
import functools
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

MARKER: Final = "qz7marker0value"
"""Stands for a secret value. It could be the key of an option, so that no parser drops it for its looks."""
_FORMS: Final = (MARKER, base64.b64encode(MARKER.encode()).decode())


@dataclass(frozen=True, slots=True)
class Target:
    """One parser. ``run`` returns for every input that it takes or refuses as it should, and else raises.

    ``words`` are pieces that inputs are made of; ``length_max`` is in bytes.
    """

    name: str
    run: Callable[[bytes], None]
    words: tuple[str, ...] = ()
    length_max: int = 2048

    @property
    def about(self) -> str:
        """What it is about, in a line."""
        return (self.run.__doc__ or "").partition("\n")[0]


def check(held: object, finding: str) -> None:
    """What must hold of an error."""
    assert held, finding


def check_silent(error: BaseException, *more: str) -> None:
    """A refusal that shows the marker is a finding, wherever in it the marker stands."""
    shown = (str(error), repr(error), str(getattr(error, "hint", "")), *more)
    assert not shows_value(*shown), "the refusal shows a value"


def shows_value(*texts: str) -> bool:
    """Whether the marker is in any of these, as it is or in Base64."""
    return any(form in text for text in texts for form in _FORMS)


def leaves(value: object) -> Iterable[object]:
    """All that is no table and no list in parsed TOML or JSON."""
    match value:
        case dict():
            for each in value.values():
                yield from leaves(each)
        case list():
            for each in value:
                yield from leaves(each)
        case _:
            yield value


def keys(value: object) -> Iterable[str]:
    """All keys of all tables in parsed TOML or JSON."""
    match value:
        case dict():
            for key, each in value.items():
                yield str(key)
                yield from keys(each)
        case list():
            for each in value:
                yield from keys(each)


def parsed(load: Callable[[str], Any], data: bytes) -> Any:  # noqa: ANN401 (whatever the format holds)
    """What a parser of a whole format makes of bytes, or None."""
    try:
        return load(data.decode())
    except (ValueError, RecursionError):
        return None


def directory(name: str = "state") -> Path:
    """A directory of this run of the fuzzer, in memory where there is such a file system."""
    path = _directory() / name
    path.mkdir(parents=True, exist_ok=True)
    return path


@functools.cache
def _directory() -> Path:
    shared = Path("/dev/shm")
    path = Path(tempfile.mkdtemp(prefix="fuzz-", dir=shared if os.access(shared, os.W_OK) else None))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path
