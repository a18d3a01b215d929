# SPDX-License-Identifier: MIT
"""docs/architecture.md: the rooms of the code and their imports, from the table that a test enforces."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Final

from tests.support.rooms import ARROWS, modules, room

_SOURCE: Final = Path(__file__).parent / "text/architecture.md"
_PICTURE: Final = "@ROOMS@"
_TABLE: Final = "@TABLE@"
_GROUND: Final = frozenset({"agent.errors", "launcher.handoff", "launcher.errors", "launcher.record"})
"""Rooms that nearly all import: their arrows would hide the others."""


def page() -> str:
    """The page, with the picture and the table in their places."""
    text = _SOURCE.read_text(encoding="utf-8")
    return text.replace(_PICTURE, _picture()).replace(_TABLE, _table())


def _picture() -> str:
    rows = ["```mermaid", "graph TD"]
    for name, targets in ARROWS.items():
        rows += [f"  {name} --> {each}" for each in targets if each not in _GROUND]
    return "\n".join([*rows, "```"])


def _table() -> str:
    rows = ["| room | what it is for | imports |", "|---|---|---|"]
    for name, targets in ARROWS.items():
        said = ", ".join(f"`{each}`" for each in targets) or "nothing"
        rows.append(f"| `{name.replace('.', '/')}` | {_purpose(name)} | {said} |")
    return "\n".join(rows)


def _purpose(name: str) -> str:
    """The first sentence of the room's docstring."""
    paths = modules()
    path = paths.get(f"credferry.{name}") or next(paths[each] for each in paths if room(each) == name)
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split()).partition(". ")[0].rstrip(".")
