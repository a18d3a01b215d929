# SPDX-License-Identifier: MIT
"""Which files are generated, and what is to be in each."""

from __future__ import annotations

from pathlib import Path

from docs.generate import architecture, completions, man, pages, pictures, schemas
from docs.generate.commands import commands

ROOT = Path(__file__).parents[2]


def generated() -> dict[str, str]:
    """The content of each generated file, by its path below the project's directory."""
    top = commands()
    sources = ROOT / "docs/man"
    return {
        "contrib/completions/credferry.bash": completions.bash(top),
        "contrib/completions/_credferry": completions.zsh(top),
        "contrib/completions/credferry.fish": completions.fish(top),
        "docs/man/credferry.8": man.command(top, (sources / "credferry.8.md").read_text()),
        "docs/man/credferry-launch.8": man.page(
            "credferry-launch", 8, (sources / "credferry-launch.8.md").read_text()
        ),
        "docs/man/credferry.toml.5": man.configuration(
            (sources / "credferry.toml.5.md").read_text(), (ROOT / "docs/configuration.md").read_text()
        ),
        "docs/architecture.md": architecture.page(),
        **pages.pages(top, (ROOT / "contrib/catalog/credferry.catalog").read_text()),
        **pictures.pictures(),
        **schemas.schemas(),
    }
