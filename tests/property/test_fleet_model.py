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
from tests.support.world.fleet import HOSTS, MEMBERS, FleetWorld, Host
from tests.support.world.machine import Settings
from tests.support.world.systemd import RESULTS

NUMBER = st.integers(0, len(HOSTS) - 1)
"""Of a host; counted round where there are fewer."""
SOME = st.sampled_from([HOSTS, HOSTS, HOSTS[:1], HOSTS[1:]])
VMS = ("a", "c")
SIZES = st.sampled_from([(2, VMS[:1]), (2, VMS), (3, VMS[:1]), (3, VMS)])
"""Hosts, and the VMs of each. Most faults of an order show in a small fleet as well, and it is faster."""
VM = st.sampled_from(VMS)
VALUES = st.sampled_from(["1", "2", "3", "bad", "sick"])
SECRETS = st.fixed_dictionaries({"x": VALUES, "y": st.just("1"), "z": VALUES})
EFFECTS = st.integers(min_value=0, max_value=60)
FATES = st.lists(st.sampled_from(["", "lost", "unanswered", "late"]), max_size=4)
IS_LONG = "CREDFERRY_FLEET_RUNS" in os.environ
RUNS = int(os.environ.get("CREDFERRY_FLEET_RUNS", "100"))


class Fleet(RuleBasedStateMachine):
    """What may happen to a fleet, in any order."""

    runs: ClassVar[int] = 0
    moments: ClassVar[int] = 0
    most: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        self.world = FleetWorld()

    @initialize(
        size=SIZES, is_live=st.sampled_from([False, False, True]), limit=st.sampled_from([1, 1, 2, 3])
    )
    def begin(self, size: tuple[int, tuple[str, ...]], is_live: bool, limit: int) -> None:
        """Hosts whose VMs run what is published, and a limit."""
        Fleet.runs += 1
        if limit != 1:
            self.world.limit(limit)
        hosts, vms = size
        for name in HOSTS[:hosts]:
            live = vms if is_live else ()
            self.world.add(name, Settings(vms=vms, attempts=1, live=live, has_other=False))

    def teardown(self) -> None:
        """However it went, once all faults cease it ends well."""
        try:
            if self.world.hosts:
                self.world.settle()
        finally:
            Fleet.most = max(Fleet.most, self.world.most)
            self.world.close()

    def host(self, number: int) -> Host:
        """One of the hosts."""
        return self.world.hosts[HOSTS[number % len(self.world.hosts)]]

    @rule(number=NUMBER, times=st.integers(1, 3))
    def turn(self, number: int, times: int) -> None:
        """A host's agent makes some turns."""
        for _ in range(times):
            if not self.host(number).is_gone:
                self.world.turn(self.host(number).name)

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

    @rule(number=NUMBER, effects=EFFECTS)
    def kill_an_agent(self, number: int, effects: int) -> None:
        """An agent dies at its n-th effect: a write, a record, a call of systemd, a request to etcd."""
        if not self.host(number).is_gone:
            name = self.host(number).name
            self.world.turn(name, lambda machine: machine.interrupted_turn(effects, machine.die))

    @rule(number=NUMBER, other=NUMBER, effects=EFFECTS)
    def work_meanwhile(self, number: int, other: int, effects: int) -> None:
        """Another host's agent works in the midst of a turn."""
        one, another = self.host(number), self.host(other)
        if one is not another and not one.is_gone and not another.is_gone:
            self.world.turn(
                one.name,
                lambda machine: machine.interrupted_turn(effects, lambda: self.world.turn(another.name)),
            )

    @rule(number=NUMBER)
    def die(self, number: int) -> None:
        """A host is gone for good."""
        if not self.host(number).is_gone:
            self.world.die(self.host(number).name)

    @rule(number=NUMBER)
    def reboot(self, number: int) -> None:
        """A host loses its power and boots."""
        if not self.host(number).is_gone:
            self.world.reboot(self.host(number).name)

    @rule(number=NUMBER, fates=FATES)
    def lose_requests(self, number: int, fates: list[str]) -> None:
        """Some of a host's next requests, or their answers, are lost or late."""
        self.host(number).fates.extend(fates)

    @rule()
    def arrive(self) -> None:
        """What was late arrives."""
        self.world.arrive()

    @rule(number=NUMBER)
    def cut_or_join(self, number: int) -> None:
        """A host cannot reach etcd, or can again."""
        self.host(number).is_cut ^= True

    @rule(number=st.integers(0, MEMBERS - 1))
    def kill_or_start_a_member(self, number: int) -> None:
        """A member of etcd is gone, or is back. Without most of them, nobody is answered."""
        self.world.down ^= {f"http://m{number}"}

    @rule(number=NUMBER, vm=VM, result=st.sampled_from(RESULTS))
    def end_the_next_job(self, number: int, vm: str, result: str) -> None:
        """The next restart of a VM ends like this."""
        self.host(number).machine.systemd.vms[vm].next_result = result

    @rule(number=NUMBER, vm=VM)
    def stop_by_hand(self, number: int, vm: str) -> None:
        """An operator stops a VM."""
        systemd = self.host(number).machine.systemd
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
