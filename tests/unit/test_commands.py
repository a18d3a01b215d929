# SPDX-License-Identifier: MIT
"""Each `credferry` command that a page, a unit, a NixOS test or a message names exists in the program."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs.generate.commands import commands

PROGRAM = commands()
ROOT = Path(__file__).parents[2]
PLACES = (
    *("docs/**/*.md", "README.md", "SECURITY.md", "CONTRIBUTING.md"),
    *(
        "contrib/**/*.service",
        "contrib/**/*.nix",
        "contrib/**/*.md",
        "contrib/**/*.rules",
        "contrib/**/*.catalog",
    ),
    *("tests/nixos/*", "agent/**/*.py", "launcher/**/*.py"),
)
COMMAND = re.compile(
    r"(?:[`'|]|\(\"|^[#$] |/usr/bin/|see: |run )(?:sudo )?credferry "
    r"((?:[a-z][a-z-]*|--?[a-z-]+)(?: [^`\"|<>;&)#…\n]*)?)(?=[`\"|<>;&)#…]|$)",
    re.MULTILINE,
)
"""The words behind `credferry`, as far as a shell takes them for arguments."""
HIDDEN = frozenset({"hand-over"})
"""Verbs for units alone, which the help does not list."""
FILES = sorted(
    path.relative_to(ROOT)
    for place in PLACES
    for path in ROOT.glob(place)
    if path.is_file() and COMMAND.search(path.read_text(errors="replace"))
)


def unknown(line: str) -> str:
    """What in a command line the program does not know; empty for nothing. Arguments may be left out."""
    command = PROGRAM
    for word in line.replace("'", "").split():
        if word.startswith("-"):
            names = {name for option in command.options for name in option.names}
            if word.partition("=")[0] not in names:
                return word
        elif command.commands:
            verbs = [each for each in command.commands if each.path[-1] == word]
            if not verbs:
                return "" if word in HIDDEN else word
            command = verbs[0]
    return ""


@pytest.mark.parametrize("path", FILES, ids=str)
def test_each_command_is_one(path: Path) -> None:
    """Its verb exists and takes these options."""
    lines = COMMAND.findall((ROOT / path).read_text(errors="replace"))
    wrong = {f"credferry {line}": word for line in lines if (word := unknown(line))}
    assert wrong == {}


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("run `credferry audit --since today 'web*'`", ""),
        ("# credferry restrat web\n", "restrat"),
        ('machine.succeed("credferry restart --hard web")', "--hard"),
        ("ExecStart=/usr/bin/credferry agent --often", "--often"),
        ("see: credferry guest-key turn web", "turn"),
        ("`credferry --versoin`", "--versoin"),
    ],
)
def test_what_is_wrong_is_found(text: str, word: str) -> None:
    """In a page, a console, a script, a unit, a hint."""
    (line,) = COMMAND.findall(text)
    assert unknown(line) == word
