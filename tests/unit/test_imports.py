# SPDX-License-Identifier: MIT
"""Imports between rooms point down, in no circle, and foreign libraries come in at one place each."""

from __future__ import annotations

import ast
import re

import pytest

from tests.support import rooms
from tests.support.rooms import ARROWS, Import

MODULES = rooms.modules()
ALL = [each for name, path in MODULES.items() for each in rooms.imports(name, path, MODULES)]
RUNTIME = [
    each for name, path in MODULES.items() for each in rooms.imports(name, path, MODULES, types=False)
]
IMPORTERS = {
    "gi": {"credferry.agent.bus.connection", "credferry.agent.bus.published"},
    "prometheus_client": {
        "credferry.agent.daemon.fleet_metrics",
        "credferry.agent.daemon.metrics",
        "credferry.agent.daemon.secret_metrics",
    },
    "pydbus": {"credferry.agent.bus.connection", "credferry.agent.bus.published"},
    "requests": {
        "credferry.agent.fleet.fleetlock",
        "credferry.agent.fleet.gateway",
        "credferry.agent.fleet.transport",
    },
    "systemd.journal": {"credferry.agent.audit.records"},
    "urllib3": {"credferry.agent.fleet.transport"},
    "watchdog": {"credferry.agent.source.watch"},
}
"""A foreign module, and the modules that import it: one, or those of one room."""


def test_imports_keep_to_the_table() -> None:
    """Each import between rooms is in the table, each arrow of the table points down, and each is used."""
    assert rooms.faults(ALL) == []


def test_there_is_no_circle() -> None:
    """No module imports itself by way of others, within functions included."""
    assert rooms.circle(RUNTIME) == []


def test_a_planted_upward_import_is_found() -> None:
    """An import from the ground to the top floor breaks the table, also where the table were to allow it."""
    planted = Import("credferry.agent.errors", "credferry.agent.cli.status")
    assert any("agent.errors to agent.cli" in each for each in rooms.faults([*ALL, planted]))
    allowed = {**ARROWS, "agent.errors": (*ARROWS["agent.errors"], "agent.cli")}
    assert "agent.errors points up to agent.cli" in rooms.faults([*ALL, planted], allowed)


def test_a_planted_circle_is_found() -> None:
    """Two modules of one room that import each other are a circle."""
    first, second = "credferry.agent.store.files", "credferry.agent.store.generations"
    assert {first, second} <= set(rooms.circle([*RUNTIME, Import(first, second)]))


def test_an_unused_arrow_is_found() -> None:
    """The table says no more than there is."""
    wider = {**ARROWS, "agent.cli": (*ARROWS["agent.cli"], "launcher.record")}
    assert "agent.cli does not import launcher.record: drop the arrow" in rooms.faults(ALL, wider)


def test_every_room_says_what_it_is_for() -> None:
    """A package's docstring says what belongs there, what must never be in it, and the table's arrows."""
    for name, path in MODULES.items():
        if path.name == "__init__.py" and name.count(".") > 1:
            text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            assert "May import:" in text, name
            assert "Never:" in text, name
            named = re.findall(r"`([a-z.]+)`", text.partition("May import:")[2].partition("Never:")[0])
            assert tuple(named) == ARROWS[rooms.room(name)], name


def test_agent_and_launcher_share_little() -> None:
    """The agent imports three modules of the launcher, and the launcher imports nothing of the agent."""
    shared = {f"credferry.launcher.{name}" for name in ("handoff", "journal", "errors")}
    for each in ALL:
        ours, theirs = each.module.split(".")[1], each.of.split(".")[1:2]
        if each.of.startswith("credferry.") and [ours] != theirs:
            assert ours == "agent", each
            assert each.of in shared, each


@pytest.mark.parametrize(("foreign", "importers"), IMPORTERS.items())
def test_one_room_imports_it(foreign: str, importers: set[str]) -> None:
    """A library behind a boundary is imported at that boundary alone."""
    found = {each.module for each in ALL if each.of == foreign or each.of.startswith(f"{foreign}.")}
    assert found == importers
    assert len({rooms.room(each) for each in importers}) == 1
