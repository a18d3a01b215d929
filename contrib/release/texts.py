# SPDX-License-Identifier: MIT
"""What a release needs in the project's files, and how it changes them. Pure."""

from __future__ import annotations

import re
import tomllib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import date

CHANGELOG: Final = "CHANGELOG.md"
UPGRADE: Final = "docs/how-to/upgrade.md"
PROJECT: Final = "pyproject.toml"
PLACES: Final = {
    "agent/__init__.py": r'(?m)^(__version__ = ")([^"\n]+)(")$',
    "docs/man/credferry.8": r'(?m)^(\.TH .* "credferry )([^"\n]+)(" "credferry")$',
    "docs/man/credferry-launch.8": r'(?m)^(\.TH .* "credferry )([^"\n]+)(" "credferry")$',
    "docs/man/credferry.toml.5": r'(?m)^(\.TH .* "credferry )([^"\n]+)(" "credferry")$',
}
"""Each file that holds the version, with what stands around it.

pyproject.toml, the Debian package and the Nix package read it from the first.
"""
FILES: Final = (CHANGELOG, UPGRADE, PROJECT, *PLACES)

_DYNAMIC: Final = {"attr": "agent.__version__"}
_UNRELEASED: Final = re.compile(r"(?ms)^## \[Unreleased\]\n(.*?)(?=^## |\Z)")
_RELEASED: Final = re.compile(r"(?m)^## \[([0-9.]+)\] - \d{4}-\d\d-\d\d$")


def faults(texts: Mapping[str, str], version: str) -> Iterator[str]:
    """What must be mended before this version can be released, one sentence for each."""
    if not re.fullmatch(r"(0|[1-9]\d*)(\.(0|[1-9]\d*)){2}", version):
        yield f"{version!r} is no version of the form X.Y.Z"
        return
    found = _UNRELEASED.search(texts[CHANGELOG])
    if found is None:
        yield f"{CHANGELOG} has no section [Unreleased]"
    elif not re.search(r"(?m)^- ", found[1]):
        yield f"{CHANGELOG}: the section [Unreleased] has no entry"
    newest = max((_numbers(each) for each in _RELEASED.findall(texts[CHANGELOG])), default=())
    if _numbers(version) <= newest:
        yield f"{CHANGELOG} already has {'.'.join(map(str, newest))}: the version must be higher"
    if not re.search(rf"(?m)^#+ {re.escape(version)}$", texts[UPGRADE]):
        yield f"{UPGRADE} has no section `{version}`: say there what changes in configuration or on disk"
    project = tomllib.loads(texts[PROJECT])
    dynamic = project.get("tool", {}).get("setuptools", {}).get("dynamic", {})
    if "version" in project["project"] or dynamic.get("version") != _DYNAMIC:
        yield f"{PROJECT} must read its version from agent/__init__.py"
    for path, pattern in PLACES.items():
        if len(re.findall(pattern, texts[path])) != 1:
            yield f"{path} must hold the version once, in the form {pattern}"


def changed(texts: Mapping[str, str], version: str, day: date) -> dict[str, str]:
    """The files with this version: the changelog's section is dated, and a new empty one stands above it."""
    heading = f"## [Unreleased]\n\n## [{version}] - {day:%Y-%m-%d}\n"
    made = {CHANGELOG: texts[CHANGELOG].replace("## [Unreleased]\n", heading, 1)}
    for path, pattern in PLACES.items():
        made[path] = re.sub(pattern, rf"\g<1>{version}\g<3>", texts[path])
    return made


def entries(changelog: str) -> str:
    """What stands in the changelog's section [Unreleased]."""
    found = _UNRELEASED.search(changelog)
    return found[1].strip() if found else ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))
