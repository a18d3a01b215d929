# SPDX-License-Identifier: MIT
"""All output of the command goes through one edge."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

CLI = Path(__file__).parents[3] / "agent/cli"
WRITERS = {
    "__init__.py": 2,  # the one line about a failure or an interrupt, on standard error
    "application.py": 1,  # the version
    "audit_forms.py": 1,  # CSV, by cells
    "check.py": 1,  # what the launcher would refuse, on standard error, by `printable`
    "common.py": 1,  # JSON
    "polkit_rule.py": 1,  # a program's source, whose texts are literals of its language
    "terminal.py": 4,  # a line; the second screen, which `--watch` enters, draws on and leaves
}
"""How often each module writes to an output by itself."""


def outputs(path: Path) -> int:
    """How often a module names standard output by itself, ``print``, or typer's ``echo``."""
    names = {"print", "typer.echo", "typer.secho", "sys.stdout.write", "sys.stdout"}
    found = 0
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and (
            ast.unparse(node.func) in names or any(ast.unparse(each) in names for each in node.args)
        ):
            found += 1
    return found


@pytest.mark.parametrize("path", sorted(CLI.glob("*.py")), ids=lambda path: path.name)
def test_nothing_is_printed_past_the_edge(path: Path) -> None:
    """A verb prints lines, tables, CSV and JSON by the functions that make text harmless."""
    assert outputs(path) == WRITERS.get(path.name, 0)
