# SPDX-License-Identifier: MIT
"""Which module may import which: the arrows point one way, and what is foreign comes in at one place."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
LAYERS = (
    "agent.cli",
    "agent.doctor",
    "agent.daemon",
    "agent.service",
    "agent.rollout",
    ("agent.store", "agent.reconcile"),
)
"""From the top. Whatever else there is may be anywhere, as long as no way leads up."""
ONE_IMPORTER = {
    "gi": "agent.bus",
    "pydbus": "agent.bus",
    "prometheus_client": "agent.metrics",
    "systemd.journal": "agent.journal",
    "watchdog": "agent.watch",
}


def name_of(path: Path) -> str:
    """A module's name."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_for_types(node: ast.AST) -> bool:
    """Whether this is ``if TYPE_CHECKING:``, which runs nowhere."""
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def statements(node: ast.AST, *, types: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """A module's imports, those within functions, too."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif types or not is_for_types(child):
            yield from statements(child, types=types)


def imports(path: Path, *, types: bool = False) -> set[str]:
    """What a module imports, as far as that are modules; of foreign ones, whatever is named."""
    found = set()
    for statement in statements(ast.parse(path.read_text(encoding="utf-8")), types=types):
        if isinstance(statement, ast.Import):
            found |= {each.name for each in statement.names}
            continue
        assert statement.module, f"{path}: a relative import"
        assert not statement.level, f"{path}: a relative import"
        for each in statement.names:
            whole = f"{statement.module}.{each.name}"
            is_ours = statement.module.partition(".")[0] in {"agent", "launcher"}
            found.add(statement.module if is_ours and whole not in MODULES else whole)
    return found


MODULES = {
    name_of(path): path for package in ("agent", "launcher") for path in (ROOT / package).rglob("*.py")
}
GRAPH = {name: imports(path) & MODULES.keys() for name, path in MODULES.items()}


def is_within(module: str, packages: str | tuple[str, ...]) -> bool:
    """Whether a module is one of these, or in one of them."""
    some = (packages,) if isinstance(packages, str) else packages
    return any(module == each or module.startswith(f"{each}.") for each in some)


def reached(module: str) -> set[str]:
    """All that a module imports, by whatever way."""
    found: set[str] = set()
    left = [module]
    while left:
        new = GRAPH[left.pop()] - found
        found |= new
        left += new
    return found


def test_there_is_no_circle() -> None:
    """No module imports itself by way of others, not even late."""
    TopologicalSorter(GRAPH).prepare()


@pytest.mark.parametrize("at", range(1, len(LAYERS)), ids=str)
def test_no_way_leads_up(at: int) -> None:
    """No layer reaches one above it."""
    for module in (each for each in MODULES if is_within(each, LAYERS[at])):
        for above in LAYERS[:at]:
            assert not [each for each in reached(module) if is_within(each, above)], module


def test_every_layer_is_there() -> None:
    """Each name of a layer is one of a module."""
    names = [name for layer in LAYERS for name in ((layer,) if isinstance(layer, str) else layer)]
    assert set(names) <= MODULES.keys()


def test_only_verbs_know_the_doctor() -> None:
    """The doctor is imported by verbs alone, and verbs by nobody, not even for types."""
    for module, path in MODULES.items():
        for each in imports(path, types=True):
            assert not is_within(each, "agent.doctor") or is_within(module, ("agent.cli", "agent.doctor"))
            assert not is_within(each, "agent.cli") or is_within(module, "agent.cli")


def test_agent_and_launcher_share_the_handoff() -> None:
    """It is all that the agent imports of the launcher, which imports nothing of the agent."""
    for module, path in MODULES.items():
        other = "launcher" if is_within(module, "agent") else "agent"
        found = {each for each in imports(path, types=True) if is_within(each, other)}
        assert found <= ({"launcher.handoff"} if other == "launcher" else set()), module


@pytest.mark.parametrize(("foreign", "importer"), ONE_IMPORTER.items())
def test_one_importer(foreign: str, importer: str) -> None:
    """What is behind a boundary of ours comes in there alone."""
    found = {
        name
        for name, path in MODULES.items()
        if any(is_within(each, foreign) for each in imports(path, types=True))
    }
    assert found == {importer}
