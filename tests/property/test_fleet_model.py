# SPDX-License-Identifier: MIT
"""A model world of hosts with one etcd: never more than N VMs down, and all end on what is published.

The hosts' agents are real, and so is the engine. See `tests.support.world.fleet`.
"""

from __future__ import annotations

import os
from typing import ClassVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.support.numbers import Number, note
from tests.support.world.fleet import HOSTS, MEMBERS, FleetWorld
from tests.support.world.machine import Settings
from tests.support.world.systemd import RESULTS

NAMES = st.sampled_from(HOSTS)
SOME = st.sampled_from([HOSTS, HOSTS, HOSTS[:1], HOSTS[1:]])
VMS = ("a", "c")
VM = st.sampled_from(VMS)
VALUES = st.sampled_from(["1", "2", "3", "bad", "sick"])
SECRETS = st.fixed_dictionaries({"x": VALUES, "y": st.just("1"), "z": VALUES})
EFFECTS = st.integers(min_value=0, max_value=60)
FATES = st.lists(st.sampled_from(["", "lost", "unanswered", "late"]), max_size=4)
IS_LONG = "CREDFERRY_FLEET_RUNS" in os.environ
RUNS = int(os.environ.get("CREDFERRY_FLEET_RUNS", "50"))


class Fleet(RuleBasedStateMachine):
    """What may happen to a fleet, in any order."""

    runs: ClassVar[int] = 0
    moments: ClassVar[int] = 0
    most: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        self.world = FleetWorld()

    @initialize(live=st.sampled_from([(), (), VMS]), limit=st.sampled_from([1, 1, 2, 3]))
    def begin(self, live: tuple[str, ...], limit: int) -> None:
        """Hosts whose VMs run what is published, and a limit."""
        Fleet.runs += 1
        if limit != 1:
            self.world.limit(limit)
        for name in HOSTS:
            self.world.add(name, Settings(vms=VMS, attempts=1, live=live))

    def teardown(self) -> None:
        """However it went, once all faults cease it ends well."""
        try:
            if self.world.hosts:
                self.world.settle()
        finally:
            Fleet.most = max(Fleet.most, self.world.most)
            self.world.close()

    def is_there(self, name: str) -> bool:
        """Whether a host is alive."""
        return not self.world.hosts[name].is_gone

    @rule(name=NAMES, times=st.integers(1, 3))
    def turn(self, name: str, times: int) -> None:
        """A host's agent makes some turns."""
        for _ in range(times):
            if self.is_there(name):
                self.world.turn(name)

    @rule(names=SOME, secrets=SECRETS)
    def publish(self, names: tuple[str, ...], secrets: dict[str, str]) -> None:
        """New secrets arrive on some hosts."""
        self.world.publish(names, secrets)

    @rule(secrets=SECRETS)
    def roll(self, secrets: dict[str, str]) -> None:
        """New secrets arrive on all hosts, and each agent makes some turns."""
        self.world.publish(HOSTS, secrets)
        for _ in range(3):
            for host in self.world.alive:
                self.world.turn(host.name)

    @rule(name=NAMES, effects=EFFECTS)
    def kill_an_agent(self, name: str, effects: int) -> None:
        """An agent dies at its n-th effect: a write, a record, a call of systemd, a request to etcd."""
        if self.is_there(name):
            self.world.turn(name, lambda machine: machine.interrupted_turn(effects, machine.die))

    @rule(name=NAMES, other=NAMES, effects=EFFECTS)
    def work_meanwhile(self, name: str, other: str, effects: int) -> None:
        """Another host's agent works in the midst of a turn."""
        if name != other and self.is_there(name) and self.is_there(other):
            self.world.turn(
                name, lambda machine: machine.interrupted_turn(effects, lambda: self.world.turn(other))
            )

    @rule(name=NAMES)
    def die(self, name: str) -> None:
        """A host is gone for good."""
        if self.is_there(name):
            self.world.die(name)

    @rule(name=NAMES)
    def reboot(self, name: str) -> None:
        """A host loses its power and boots."""
        if self.is_there(name):
            self.world.reboot(name)

    @rule(name=NAMES, fates=FATES)
    def lose_requests(self, name: str, fates: list[str]) -> None:
        """Some of a host's next requests, or their answers, are lost or late."""
        self.world.hosts[name].fates.extend(fates)

    @rule()
    def arrive(self) -> None:
        """What was late arrives."""
        self.world.arrive()

    @rule(name=NAMES)
    def cut_or_join(self, name: str) -> None:
        """A host cannot reach etcd, or can again."""
        self.world.hosts[name].is_cut = not self.world.hosts[name].is_cut

    @rule(number=st.integers(0, MEMBERS - 1))
    def kill_or_start_a_member(self, number: int) -> None:
        """A member of etcd is gone, or is back. Without most of them, nobody is answered."""
        self.world.down ^= {f"http://m{number}"}

    @rule(name=NAMES, vm=VM, result=st.sampled_from(RESULTS))
    def end_the_next_job(self, name: str, vm: str, result: str) -> None:
        """The next restart of a VM ends like this."""
        self.world.hosts[name].machine.systemd.vms[vm].next_result = result

    @rule(name=NAMES, vm=VM)
    def stop_by_hand(self, name: str, vm: str) -> None:
        """An operator stops a VM."""
        systemd = self.world.hosts[name].machine.systemd
        systemd.stop_vm(systemd.vms[vm])

    @rule(number=st.integers(1, 3))
    def limit(self, number: int) -> None:
        """An operator sets the limit."""
        self.world.limit(number)

    @rule()
    def halt(self) -> None:
        """An operator halts the group."""
        self.world.halt()

    @rule()
    def resume(self) -> None:
        """An operator ends any halt."""
        self.world.resume()

    @rule(seconds=st.sampled_from([3.0, 20.0, 70.0, 4000.0]))
    def pass_time(self, seconds: float) -> None:
        """Time passes."""
        self.world.clock.pass_time(seconds)

    @invariant()
    def steady(self) -> None:
        """What holds at every moment."""
        Fleet.moments += 1
        self.world.check()
        self.world.check_hosts()


class TestFleet(Fleet.TestCase):  # type: ignore[misc,valid-type]  # made by Hypothesis, at run time
    """All of it, so many times."""

    settings = settings(
        max_examples=RUNS,
        stateful_step_count=20,
        deadline=None,
        derandomize=not IS_LONG,  # one verdict on the same code
        suppress_health_check=[HealthCheck.too_slow],
    )

    def runTest(self) -> None:  # noqa: N802 (unittest's name)
        """Whatever happens, no VM is worked on without a slot, and all end on what is published."""
        Fleet.runs = Fleet.moments = Fleet.most = 0
        super().runTest()
        assert Fleet.most > 1 or not IS_LONG, "no two VMs were ever down at the same time"
        if IS_LONG:
            note(Number.FLEET_RUNS, Fleet.runs)
            note(Number.FLEET_MOMENTS, Fleet.moments)
