# SPDX-License-Identifier: MIT
"""A module has one job, in at most 250 lines. A longer one says in its docstring what its one job is."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING, Final

import pytest

from tests.support import rooms

if TYPE_CHECKING:
    from pathlib import Path

LINES_MAX: Final = 250
ONE_JOB: Final = re.compile(r"^One job: \S", re.MULTILINE)
"""Begins the line of a docstring that says why a long module is left whole."""
MODULES: Final = rooms.modules()


def is_too_long(text: str) -> bool:
    """Whether a module has more lines than it may, and does not name its one job."""
    docstring = ast.get_docstring(ast.parse(text)) or ""
    return len(text.splitlines()) > LINES_MAX and not ONE_JOB.search(docstring)


@pytest.mark.parametrize("path", MODULES.values(), ids=MODULES)
def test_a_long_module_names_its_one_job(path: Path) -> None:
    """No module of the product has over 250 lines, except one that says what its one job is."""
    assert not is_too_long(path.read_text(encoding="utf-8")), f"{path}: split it, or say its one job"


def test_a_long_module_is_found() -> None:
    """A module of 251 lines is too long. It is not once its docstring names its job."""
    lines = "\n".join("x = 1" for _ in range(LINES_MAX))
    assert not is_too_long(lines)
    assert is_too_long(f'"""A module."""\n{lines}')
    assert not is_too_long(f'"""A module.\n\nOne job: to be long.\n"""\n{lines}')
    assert is_too_long(f'"""A module.\n\nOne job:\n"""\n{lines}')
