# SPDX-License-Identifier: MIT
"""One name stands for one thing: no two classes of the product share a name."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from typing import TYPE_CHECKING, Final

from tests.support import rooms

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MODULES: Final = rooms.modules()
TREES: Final = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}
SHARED_CLASSES: Final[Mapping[str, str]] = {}
"""Names that two classes may share, each with the reason."""
SHARED_FUNCTIONS: Final[Mapping[str, str]] = {
    "check": "each module of doctor checks its own link of the chain; the module's name says which",
    "register": "each verb adds itself to the command",
    "find_agent": "cli.common passes on to control.client, which it imports late",
}
"""Public functions that a module and one that it imports may both have, each with the reason."""


def classes(tree: ast.Module) -> Iterator[str]:
    """The names of a module's classes, private ones included, and of its aliases for types."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            yield node.name
    for statement in tree.body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                if re.fullmatch(r"_?[A-Z][A-Za-z]*[a-z][A-Za-z]*", name):
                    yield name


def doubled_classes(trees: Mapping[str, ast.Module]) -> dict[str, list[str]]:
    """Each name of more than one class, and the modules that define it."""
    found: dict[str, list[str]] = defaultdict(list)
    for module, tree in trees.items():
        for name in classes(tree):
            found[name].append(module)
    return {name: modules for name, modules in found.items() if len(modules) > 1}


def doubled_functions(trees: Mapping[str, ast.Module]) -> dict[str, set[str]]:
    """Each public function name that a module shares with a module that it imports, and the modules."""
    own = {
        module: {
            each.name
            for each in tree.body
            if isinstance(each, ast.FunctionDef) and not each.name.startswith("_")
        }
        for module, tree in trees.items()
    }
    found: dict[str, set[str]] = defaultdict(set)
    for module, path in MODULES.items():
        for each in rooms.imports(module, path, MODULES):
            for name in own[module] & own.get(each.of, set()) if each.of != module else ():
                found[name] |= {module, each.of}
    return dict(found)


def test_no_two_classes_share_a_name() -> None:
    """A class's name, or that of an alias for a type, stands once in the agent and the launcher."""
    assert {
        name: where for name, where in doubled_classes(TREES).items() if name not in SHARED_CLASSES
    } == {}


def test_no_foreign_class_comes_in_under_the_name_of_a_class() -> None:
    """A name imported from a foreign library is not also the name of one of the product's classes."""
    own = {name for tree in TREES.values() for name in classes(tree)}
    foreign = {
        f"{module}: {each.asname or each.name}"
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] != rooms.TOP
        for each in node.names
        if (each.asname or each.name) in own
    }
    assert foreign == set()


def test_no_two_functions_of_neighbours_share_a_name() -> None:
    """A module has no public function with the name of a function in a module that it imports."""
    found = doubled_functions(TREES)
    assert {name: where for name, where in found.items() if name not in SHARED_FUNCTIONS} == {}


def test_each_allowed_name_is_shared() -> None:
    """The lists of allowed names hold no name that nothing shares any more."""
    assert set(SHARED_CLASSES) <= set(doubled_classes(TREES))
    assert set(SHARED_FUNCTIONS) <= set(doubled_functions(TREES))


def test_a_planted_second_class_is_found() -> None:
    """A second `Event` is found, as a class and as an alias."""
    for text in ("class Event:\n    pass\n", "Event = dict[str, str]\n", "Event: type = dict\n"):
        planted = {**TREES, "credferry.launcher.planted": ast.parse(text)}
        assert doubled_classes(planted)["Event"] == [
            "credferry.agent.audit.events",
            "credferry.launcher.planted",
        ]
