# SPDX-License-Identifier: MIT
"""The rooms of the code and the imports between them: one table, from the top floor to the ground.

A room is a package, or a module that stands alone at the top of `agent` or `launcher`. A room imports only
the rooms that its row names; each of them stands further down. docs/architecture.md shows the same table.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

ROOT: Final = Path(__file__).resolve().parents[2]
TOP: Final = "credferry"

ARROWS: Final[Mapping[str, tuple[str, ...]]] = {
    "agent.cli": (
        "agent.doctor",
        "agent.daemon",
        "agent.control",
        "agent.rollout",
        "agent.fleet",
        "agent.reconcile",
        "agent.systemd",
        "agent.audit",
        "agent.store",
        "agent.config",
        "agent.sealing",
        "agent.untrusted",
        "agent.printable",
        "agent.hardening",
        "agent.errors",
        "agent",
        "launcher.handoff",
    ),
    "agent.doctor": (
        "agent.control",
        "agent.rollout",
        "agent.fleet",
        "agent.reconcile",
        "agent.systemd",
        "agent.audit",
        "agent.store",
        "agent.source",
        "agent.config",
        "agent.sealing",
        "agent.bus",
        "agent.errors",
        "launcher.handoff",
        "launcher.errors",
    ),
    "agent.daemon": (
        "agent.control",
        "agent.rollout",
        "agent.fleet",
        "agent.reconcile",
        "agent.systemd",
        "agent.audit",
        "agent.store",
        "agent.source",
        "agent.config",
        "agent.sealing",
        "agent.log",
        "agent.messages",
        "agent.journald",
        "agent.hardening",
        "agent.errors",
        "agent",
    ),
    "agent.control": (
        "agent.rollout",
        "agent.reconcile",
        "agent.audit",
        "agent.config",
        "agent.log",
        "agent.bus",
        "agent.messages",
        "agent.errors",
        "agent",
    ),
    "agent.rollout": (
        "agent.fleet",
        "agent.reconcile",
        "agent.systemd",
        "agent.audit",
        "agent.store",
        "agent.config",
        "agent.messages",
        "agent.printable",
        "agent.errors",
        "launcher.handoff",
        "launcher.errors",
    ),
    "agent.fleet": ("agent.config", "agent.digests", "agent.printable", "agent.errors"),
    "agent.reconcile": (
        "agent.systemd",
        "agent.audit",
        "agent.store",
        "agent.source",
        "agent.config",
        "agent.sealing",
        "agent.digests",
        "agent.messages",
        "agent.untrusted",
        "agent.errors",
        "launcher.handoff",
    ),
    "agent.systemd": (
        "agent.audit",
        "agent.config",
        "agent.log",
        "agent.bus",
        "agent.messages",
        "agent.errors",
        "launcher.handoff",
    ),
    "agent.audit": (
        "agent.store",
        "agent.sealing",
        "agent.digests",
        "agent.untrusted",
        "agent.printable",
        "agent.journald",
        "agent.errors",
        "launcher.handoff",
    ),
    "agent.store": (
        "agent.config",
        "agent.sealing",
        "agent.untrusted",
        "agent.errors",
        "launcher.handoff",
    ),
    "agent.source": (
        "agent.config",
        "agent.sealing",
        "agent.digests",
        "agent.messages",
        "agent.errors",
        "launcher.handoff",
    ),
    "agent.config": ("agent.digests", "agent.errors", "launcher.handoff"),
    "agent.sealing": ("agent.digests", "agent.errors"),
    "agent.log": ("agent.journald", "agent.hardening", "agent.logging_library"),
    "agent.logging_library": (),
    "agent.bus": ("agent.errors",),
    "agent.messages": (),
    "agent.untrusted": (),
    "agent.printable": (),
    "agent.digests": (),
    "agent.journald": ("launcher.journal",),
    "agent.hardening": (),
    "agent.errors": (),
    "agent": (),
    "launcher": (
        "launcher.push",
        "launcher.spec",
        "launcher.trust",
        "launcher.hypervisor",
        "launcher.journal",
        "launcher.handoff",
        "launcher.record",
        "launcher.plainjson",
        "launcher.errors",
    ),
    "launcher.spec": (
        "launcher.trust",
        "launcher.hypervisor",
        "launcher.handoff",
        "launcher.record",
        "launcher.errors",
    ),
    "launcher.push": ("launcher.handoff", "launcher.record", "launcher.errors"),
    "launcher.trust": ("launcher.errors",),
    "launcher.hypervisor": ("launcher.record", "launcher.errors"),
    "launcher.journal": ("launcher.handoff",),
    "launcher.handoff": ("launcher.record", "launcher.power", "launcher.keyed"),
    "launcher.record": (),
    "launcher.power": (),
    "launcher.keyed": (),
    "launcher.plainjson": (),
    "launcher.errors": (),
}
"""Each room and the rooms that it may import. Imports that only type checkers read count as well."""

TOGETHER: Final = {
    "launcher.__main__",
    "launcher.arguments",
    "launcher.booting",
    "launcher.channels",
    "launcher.check",
    "launcher.credentials",
    "launcher.ending",
    "launcher.explain",
    "launcher.hardening",
    "launcher.initrd",
    "launcher.oem",
    "launcher.plan",
    "launcher.pushing",
    "launcher.questions",
    "launcher.quoting",
    "launcher.root_program",
    "launcher.start",
    "launcher.supervise",
    "launcher.task",
}
"""Modules at the top of `launcher` that belong together: a VM's start from arguments to exec, a push."""


@dataclass(frozen=True, slots=True)
class Import:
    """One import statement's target: ``of`` is a module's full name, or a foreign module's."""

    module: str
    of: str


def modules(root: Path = ROOT) -> dict[str, Path]:
    """All modules of the product by their full names."""
    found = {}
    for package in ("agent", "launcher"):
        for path in (root / package).rglob("*.py"):
            parts = (TOP, *path.relative_to(root).with_suffix("").parts)
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def room(module: str) -> str:
    """The room of a module, such as ``agent.store`` or ``launcher.handoff``."""
    parts = module.split(".")[1:3]
    name = ".".join(parts)
    return "launcher" if name in TOGETHER else name


def imports(module: str, path: Path, known: Mapping[str, Path], *, types: bool = True) -> Iterator[Import]:
    """What a module imports, by full names: also within functions and, with ``types``, for type checkers."""
    for statement in _statements(ast.parse(path.read_text(encoding="utf-8")), types=types):
        if isinstance(statement, ast.Import):
            yield from (Import(module, each.name) for each in statement.names)
            continue
        if statement.level or not statement.module:
            raise ValueError(f"{path}: a relative import")
        for each in statement.names:
            whole = f"{statement.module}.{each.name}"
            is_ours = statement.module.partition(".")[0] == TOP
            yield Import(module, statement.module if is_ours and whole not in known else whole)


def faults(found: Iterable[Import], arrows: Mapping[str, tuple[str, ...]] = ARROWS) -> list[str]:
    """What breaks the table: an import without an arrow, an arrow that points up or is not used."""
    order = {name: floor for floor, name in enumerate(arrows)}
    said = []
    used: dict[str, set[str]] = {name: set() for name in arrows}
    for each in found:
        if not each.of.startswith(f"{TOP}."):
            continue
        here, there = room(each.module), room(each.of)
        if here == there:
            continue
        if here not in arrows or there not in arrows[here]:
            said.append(f"{each.module} imports {each.of}: the table has no arrow from {here} to {there}")
        used.setdefault(here, set()).add(there)
    for name, targets in arrows.items():
        said += [f"{name} points up to {each}" for each in targets if order.get(each, -1) <= order[name]]
        said += [
            f"{name} does not import {each}: drop the arrow" for each in targets if each not in used[name]
        ]
    return said


def circle(found: Iterable[Import]) -> list[str]:
    """The modules of a circle of imports, in order; empty where there is none."""
    graph: dict[str, set[str]] = {}
    for each in found:
        if each.of.startswith(f"{TOP}."):
            graph.setdefault(each.module, set()).add(each.of)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def _statements(node: ast.AST, *, types: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif types or not _is_for_types(child):
            yield from _statements(child, types=types)


def _is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
