# SPDX-License-Identifier: MIT
"""pyproject.toml lists every package, by the name that it is installed under."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_package_is_listed() -> None:
    """A room that is missing in the list would be missing in the wheel."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {
        ".".join(("credferry", *path.relative_to(ROOT).parent.parts))
        for top in ("agent", "launcher")
        for path in (ROOT / top).rglob("__init__.py")
    }
    assert set(listed) == found
    assert listed == sorted(listed)
