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


def page() -> str:
    """The page, with the picture and the table in their places."""
    text = _SOURCE.read_text(encoding="utf-8")
    return text.replace(_PICTURE, _picture()).replace(_TABLE, _table())


def main_arrows() -> list[tuple[str, str]]:
    """The arrows of the picture: those of the table to which no longer way of arrows leads.

    Rooms that import nothing are left out: the picture has one box for all of them.
    """
    return [
        (name, target)
        for name, targets in ARROWS.items()
        for target in targets
        if ARROWS[target] and not any(target in below(other) for other in targets)
    ]


def below(name: str) -> set[str]:
    """All rooms to which a way of arrows leads from a room."""
    found: set[str] = set()
    for target in ARROWS[name]:
        found |= {target} | below(target)
    return found


def _picture() -> str:
    arrows = main_arrows()
    lowest = [name for name in ARROWS if ARROWS[name] and name not in {start for start, _ in arrows}]
    ground = "<br/>".join(
        ", ".join(name for name in ARROWS if not ARROWS[name] and name.partition(".")[0] == top)
        for top in ("agent", "launcher")
    )
    rows = ["```mermaid", "graph TD"]
    rows += [f"  {start} --> {end}" for start, end in arrows]
    rows += [f"  {name} --> ground" for name in lowest]
    return "\n".join([*rows, f'  ground["{ground}"]', "```"])


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
