# SPDX-License-Identifier: MIT
"""A group of the fleet stays halted while a VM that failed is not well, whatever else ends a halt."""

from __future__ import annotations

import errno
import threading
from typing import TYPE_CHECKING
from unittest.mock import patch

import pytest

from credferry.agent.fleet.model import Applied
from credferry.agent.reconcile.decision import State
from credferry.agent.store.record_access import RecordAccess
from tests.support.host import patience
from tests.unit.agent.test_fleet_rollout import FLEET, ME, OTHER, A, B, Fleet

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

VMS = A + B.replace('"x"', '"y"')


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Fleet]:
    """A host with two VMs, each with a secret of its own, in a group with two slots."""
    made = Fleet(tmp_path, VMS)
    made.loop.configure(FLEET + VMS, "attempts = 1\nconcurrency = 2")
    made.loop.publish(x="one", y="one")
    with made.loop.running():
        made.other.limit("web", 2)
        made.begin()
        yield made


def _fail_both(fleet: Fleet) -> tuple[str, str]:
    """Both VMs fail at the same time. Returns the one that halted the group, and the other."""
    both = threading.Barrier(2, timeout=20 * patience())

    def fail(unit: str) -> str:
        manifest = fleet.loop.store.current(unit.removeprefix("microvm@")[0])
        if manifest is not None and manifest.generation == 2:
            both.wait()  # each has its slot
        return fleet.fail(unit)

    fleet.loop.units.job = fail
    fleet.loop.publish(x="bad", y="bad")
    fleet.loop.turn(lambda: all(fleet.state(vm) is State.FAILED for vm in "ab") and _told(fleet))
    (first,) = _told(fleet)
    return first, "b" if first == "a" else "a"


def _told(fleet: Fleet) -> list[str]:
    """The VMs of whose halt the fleet knows."""
    claims = {vm: fleet.claim(vm) for vm in "ab"}
    return [vm for vm, claim in claims.items() if claim is not None and claim.is_told]


def _halter(fleet: Fleet) -> str:
    """The VM for whose failure the group is halted."""
    return fleet.halt.holder.vm if fleet.halt is not None else ""


def test_a_vm_that_gets_well_leaves_the_halt_of_another(two: Fleet) -> None:
    """Two VMs have failed, and one is mended: the group is halted for the other, which keeps its slot."""
    first, other = _fail_both(two)
    assert _halter(two) == first
    two.loop.publish(**{"x": "bad", "y": "bad", "x" if first == "a" else "y": "good"})
    two.loop.turn(lambda: two.state(first) is State.IN_STEP and _halter(two) == other)
    two.loop.turn(lambda: two.claim(first) is None and _told(two) == [other])
    for _ in range(3):
        two.loop.turn()
    assert _halter(two) == other
    assert two.held() == [f"{other} on h1"]
    assert two.state(other) is State.FAILED


def test_an_operator_resumes_a_group_for_each_vm_that_failed(two: Fleet) -> None:
    """A VM whose halt has been ended gives its slot back, also while the next one halts the group."""
    first, other = _fail_both(two)
    two.other.resume("web")
    two.loop.turn(lambda: _halter(two) == other and two.claim(first) is None)
    assert two.held() == [f"{other} on h1"]
    two.loop.turn(lambda: _told(two) == [other])
    two.other.resume("web")
    two.loop.turn(lambda: not two.held() and two.claim(other) is None)
    assert two.halt is None


def test_a_vm_that_gets_well_under_the_halt_of_another_halts_nothing(two: Fleet) -> None:
    """It gives its slot back, though the fleet never heard of its halt."""
    two.other.halt("web", OTHER, "r", "it failed")
    two.slots.failed(two.loop.service._session.config.vms["b"], "r", "its restart failed")
    two.loop.turn(lambda: two.claim("b") is None)
    assert two.halt is not None
    assert two.halt.holder == OTHER


@pytest.mark.parametrize("unreadable", [("slot.json",), ("rollout.json",), ("slot.json", "rollout.json")])
@pytest.mark.parametrize("way", ["an error", "no record"])
def test_a_search_takes_nothing_from_a_vm_whose_records_cannot_be_read(
    two: Fleet, unreadable: tuple[str, ...], way: str
) -> None:
    """A record that cannot be read for a moment is not missing: the VM's slot and its halt stay."""
    two.loop.units.job = two.fail
    two.loop.publish(x="bad", y="one")
    two.loop.turn(lambda: two.state() is State.FAILED and _told(two) == ["a"])
    claim, read, stumbles = two.claim(), RecordAccess._read, []

    def stumble(self: RecordAccess, path: Path) -> bytes:
        if path.name not in unreadable:
            return read(self, path)
        stumbles.append(path.name)
        if way == "no record":
            return b"{"
        raise OSError(errno.EMFILE, "Too many open files")

    with patch.object(RecordAccess, "_read", stumble):
        two.slots._find_strays()
    assert stumbles
    for _ in range(3):
        two.loop.turn()
    assert _halter(two) == "a"
    assert two.held() == ["a on h1"]
    assert two.claim() == claim


@pytest.mark.parametrize(
    "config", [FLEET.replace('"h1"', '"h9"'), FLEET + '[vms.a]\nfleet_group = "db"\n'], ids=["host", "group"]
)
def test_a_halt_outlasts_a_reload_with_other_names(two: Fleet, config: str) -> None:
    """A VM that halted its group tries a newer value with its slot. Once it is well, both end."""
    two.loop.units.job = two.fail
    two.loop.publish(x="bad", y="one")
    two.loop.turn(lambda: two.state() is State.FAILED and _told(two) == ["a"])
    seen: list[tuple[str, list[str]]] = []

    def watch(unit: str) -> str:
        seen.append((_halter(two), two.held()))
        return two.loop._restart(unit)

    two.loop.units.job = watch
    two.loop.configure(config + VMS, "attempts = 1\nconcurrency = 2")
    two.loop.service._reload()
    two.hurry()
    two.loop.publish(x="newer", y="one")
    two.loop.turn(lambda: two.state() is State.IN_STEP and two.claim() is None)
    assert seen == [("a", ["a on h1"])]
    assert two.halt is None
    two.loop.publish(x="newest", y="one")
    two.loop.turn(lambda: len(seen) > 1 and two.claim() is None)
    assert seen[1][1] in (["a on h9"], [])
    assert not two.held()
    assert not two.etcd.group("db").held


def test_a_late_halt_that_is_ended_leaves_that_of_a_vm_that_failed(two: Fleet) -> None:
    """A VM fails while a halt is there that nobody needs. That one is ended, and the group stays halted."""

    def fail(unit: str) -> str:
        if two.halt is None:
            assert two.other.halt("web", ME, "r", "it arrived late") == Applied()
        return two.fail(unit)

    two.loop.units.job = fail
    two.loop.publish(x="one", y="bad")
    two.loop.turn(lambda: two.state("b") is State.FAILED)
    two.slots._strays_at = 0.0
    two.loop.turn(lambda: _halter(two) == "b" and _told(two) == ["b"])
    assert two.held() == ["b on h1"]
