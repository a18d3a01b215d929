# SPDX-License-Identifier: MIT
"""What an agent tells its fleet for display: VMs by state, for each group, from a thread of its own."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, cast

from credferry.agent.config.loading import parse
from credferry.agent.daemon.reports import Reports
from credferry.agent.reconcile.decision import Decision, State
from credferry.agent.reconcile.observer import Look
from credferry.agent.source.published import NOTHING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from credferry.agent.fleet.presence import Presence

CONFIG = parse(
    b"""
    [fleet]
    endpoints = ["https://192.0.2.1"]
    group = "web"
    [vms.one.credentials]
    K = { text = "k" }
    [vms.two.credentials]
    K = { text = "k" }
    [vms.three]
    fleet_group = "db"
    [vms.three.credentials]
    K = { text = "k" }
    """,
    Path("config.toml"),
)


class _Told:
    """Stands where reports go: a real etcd is in the tests of `Presence`."""

    def __init__(self) -> None:
        self.reports: list[tuple[str, Mapping[str, Mapping[str, int]]]] = []
        self.first = threading.Event()

    def tell(self, host: str, _version: str, vms: Mapping[str, Mapping[str, int]], _now: float) -> None:
        """See `Presence`."""
        self.reports.append((host, vms))
        self.first.set()


def look(*states: State) -> Look:
    """A look at the three VMs."""
    vms = CONFIG.vms.values()
    decisions = tuple(Decision(vm, state) for vm, state in zip(vms, states, strict=True))
    return Look(NOTHING, (), decisions)


def test_vms_by_state_and_group() -> None:
    """The first note is reported at once. Each group has the states of its own VMs."""
    told, reports = _Told(), Reports()
    reports.note(look(State.IN_STEP, State.IN_STEP, State.FAILED))
    assert told.reports == [], "there is no fleet yet"
    reports.use(CONFIG, cast("Presence", told), "h1")
    reports.note(look(State.IN_STEP, State.IN_STEP, State.FAILED))
    assert told.first.wait(20)
    assert told.reports == [("h1", {"web": {"in step": 2}, "db": {"failed": 1}})]
    reports.note(look(State.WAITING, State.IN_STEP, State.IN_STEP))
    reports.report()
    assert told.reports[-1] == ("h1", {"web": {"waiting": 1, "in step": 1}, "db": {"in step": 1}})


def test_a_fleet_that_is_left() -> None:
    """After a reload without [fleet], nothing is reported any more."""
    told, reports = _Told(), Reports()
    reports.use(CONFIG, cast("Presence", told), "h1")
    reports.use(parse(b"", Path("config.toml")), None, "")
    reports.note(look(State.IN_STEP, State.IN_STEP, State.IN_STEP))
    reports.report()
    assert told.reports == []
