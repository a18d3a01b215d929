# SPDX-License-Identifier: MIT
"""The agent dies at each step of a rollout in a fleet: no slot is lost, and no VM is restarted twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.world.fleet import FleetWorld
from tests.support.world.machine import Machine, Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

_TURNS = 8
"""After so many turns a rollout without a crash is over, and its slot is given back."""


@pytest.fixture
def world() -> Iterator[FleetWorld]:
    """A fleet of one host with one VM, which has no health check."""
    made = FleetWorld()
    made.add("h0", Settings(vms=("a",), attempts=1))
    yield made
    made.close()


def roll(world: FleetWorld, value: str, crash_at: int) -> bool:
    """Publish a value, and make turns; the agent dies at its n-th effect. Returns whether it came so far."""
    machine = world.hosts["h0"].machine
    machine.publish({"x": value, "y": "1", "z": "1"})
    machine.interruption = crash_at, machine.die
    machine.is_racing = True
    for _ in range(_TURNS):
        world.turn("h0")
        world.clock.pass_time(1.0)
    has_died = not machine.interruption
    machine.interruption, machine.is_racing = None, False
    for _ in range(_TURNS):
        world.turn("h0", Machine.turn)
        world.clock.pass_time(70.0)
    return has_died


def test_a_crash_at_each_step_of_a_good_rollout(world: FleetWorld) -> None:
    """Wherever the agent dies, the VM runs the new value after one restart, and no slot is left."""
    vm = world.hosts["h0"].machine.systemd.vms["a"]
    effects, has_died = 0, True
    while has_died:
        before = vm.asked
        has_died = roll(world, str(effects), effects)
        assert vm.values["X"] == str(effects).encode()
        assert vm.asked == before + 1
        assert world.holders() == set()
        assert world.hosts["h0"].machine.store.claim("a") is None
        effects += 1
    assert effects > 20, "a rollout has more steps than that"


def test_a_crash_at_each_step_of_a_rollout_that_fails(world: FleetWorld) -> None:
    """Wherever the agent dies, the VM is back on its value, and its slot and its halt are there.

    A newer value that works then ends the halt, and gives the slot back.
    """
    machine = world.hosts["h0"].machine
    effects, has_died = 0, True
    while has_died:
        has_died = roll(world, "bad", effects)
        assert machine.systemd.vms["a"].is_up
        assert world.holders() == {("h0", "a")}
        halt = world.etcd.group("web").halt
        assert halt is not None
        assert halt.holder is not None
        assert halt.holder.vm == "a"
        roll(world, f"good {effects}", 10**9)
        assert world.etcd.group("web").halt is None
        assert world.holders() == set()
        effects += 1
    assert effects > 20, "a rollout that fails has more steps than that"
