# SPDX-License-Identifier: MIT
"""A model world around the real loop: whatever happens, VMs end on what is published, restarted once.

`Service` is real, with all that it is made of: store, observer, rollout, orders, pacer, changes of the key.
So are its files. What it meets is modelled in `tests.support.world`: systemd, the journal, the clock, and
its own threads, as no real ones could be crashed and rewound thousands of times.
"""

from __future__ import annotations

import os
from typing import ClassVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from credferry.agent.audit.events import Order
from tests.support.numbers import Number, note
from tests.support.world.guest import PUSH_RESULTS
from tests.support.world.invariants import check_settled, check_steady
from tests.support.world.machine import VMS, Machine, Settings
from tests.support.world.second_source import PAIR_NUMBERS, document, pair
from tests.support.world.systemd import RESULTS

NAMES = st.sampled_from(VMS)
VALUES = st.sampled_from(["1", "2", "3", "bad", "sick", "flap"])
SECRETS = st.fixed_dictionaries({"x": VALUES, "z": VALUES}, optional={"y": VALUES}) | st.dictionaries(
    st.sampled_from("xyz"), st.sampled_from(["1", ""]), max_size=3
)
"""Mostly whole, at times lacking. A VM does not start with ``bad``, fails over and over with ``flap``, and
with ``sick`` VM c is not healthy."""
UNITS = 'before = "drain@%i.service", after = "undrain@%i.service", retry_seconds = 5'
EFFECTS = st.integers(min_value=0, max_value=60)
SETTINGS = st.builds(
    Settings,
    vms=st.sampled_from([VMS, ("a", "b"), ("b", "c"), ("c",)]),
    policy=st.sampled_from(["restart", "restart", "hold", "ignore"]),
    restarts_per_hour=st.sampled_from([0, 1]),
    quiet_seconds=st.sampled_from([0, 20]),
    attempts=st.sampled_from([1, 2]),
    pause_seconds=st.sampled_from([0, 0, 5]),
    units=st.sampled_from(["", "", UNITS]),
    is_canary=st.booleans(),
    live=st.sampled_from([VMS, (), ("a", "c"), ("b",)]),
    on_live_failure=st.sampled_from(["restart", "restart", "hold"]),
)
PAIR = st.sampled_from(PAIR_NUMBERS)
FORGERIES = ("fifo", "link", "junk", "huge", "neighbour", "full", "digest", "none")
IS_LONG = "CREDFERRY_MODEL_RUNS" in os.environ
RUNS = int(os.environ.get("CREDFERRY_MODEL_RUNS", "300"))


class World(RuleBasedStateMachine):
    """What may happen to a host, in any order."""

    runs: ClassVar[int] = 0
    states: ClassVar[set[object]] = set()

    def __init__(self) -> None:
        super().__init__()
        World.runs += 1
        self.host: Machine = None  # type: ignore[assignment]  # made by the first rule

    @initialize(live=st.sampled_from([(), VMS]), units=st.sampled_from(["", UNITS]))
    def begin(self, live: tuple[str, ...], units: str) -> None:
        """A host whose VMs run what is published; they are live, or none of them is."""
        self.host = Machine.made(Settings(live=live, units=units))

    def teardown(self) -> None:
        """However it went, once all faults cease it ends well."""
        if self.host is None:
            return
        try:
            check_settled(self.host)
        finally:
            self.host.close()

    @rule()
    def turn(self) -> None:
        """The agent makes a turn."""
        self.host.turn()

    @rule(secrets=SECRETS)
    def publish(self, secrets: dict[str, str]) -> None:
        """A new generation: new values, old values again, the same, missing or empty ones."""
        self.host.publish(secrets)

    @rule()
    def publish_the_same(self) -> None:
        """A new generation that holds what the one before held."""
        if self.host.secrets is not None:
            self.host.publish(self.host.secrets)

    @rule()
    def publish_dry(self) -> None:
        """A generation is made, and not switched to."""
        self.host.publish_dry()

    @rule(name=st.sampled_from("xyz"), value=VALUES)
    def write_in_place(self, name: str, value: str) -> None:
        """One secret is written where it is."""
        self.host.write_in_place(name, value)

    @rule()
    def remove_source(self) -> None:
        """The source vanishes, until something is published again."""
        self.host.remove_source()

    @rule(value=VALUES, neighbour=st.integers(0, 2), certificate=PAIR, key=PAIR)
    def publish_other(self, value: str, neighbour: int, certificate: int, key: int) -> None:
        """A new generation of the second source: other fields, and a pair that belongs together or not."""
        self.host.publish_other(value, neighbour, certificate, key)

    @rule(number=PAIR, is_key_first=st.booleans(), effects=EFFECTS)
    def renew_a_certificate(self, number: int, is_key_first: bool, effects: int) -> None:
        """Certificate and key are written one after the other, and the agent works in between."""
        files = [("cert.pem", pair(number)[0]), ("key.pem", pair(number)[1])]
        first, second = reversed(files) if is_key_first else files
        self.host.write_other_in_place(*first)
        self.host.interrupted_turn(effects, lambda: self.host.write_other_in_place(*second))
        self.host.write_other_in_place(*second)

    @rule(value=VALUES, neighbour=st.integers(0, 2))
    def write_fields(self, value: str, neighbour: int) -> None:
        """The file with fields is written where it is, at times with the same field as before."""
        self.host.write_other_in_place("w.json", document(value, neighbour))

    @rule(name=st.sampled_from(["w.json", "cert.pem", "key.pem"]), text=st.sampled_from(["", "{", "junk"]))
    def spoil_a_file(self, name: str, text: str) -> None:
        """A file of the second source is cut off, or is something else."""
        self.host.write_other_in_place(name, text)

    @rule()
    def remove_other_source(self) -> None:
        """The second source vanishes, until something is published there again."""
        self.host.other.remove()

    @rule(effects=EFFECTS)
    def crash_during_a_turn(self, effects: int) -> None:
        """The agent dies at its n-th effect: a write made durable, a record, a call of systemd."""
        self.host.interrupted_turn(effects, self.host.die)

    @rule(effects=EFFECTS, secrets=SECRETS, vm=NAMES, result=st.sampled_from(("done", *RESULTS)))
    def publish_and_crash(self, effects: int, secrets: dict[str, str], vm: str, result: str) -> None:
        """Something is published, and the agent dies on the way to rolling it out, or back.

        A restart of one VM ends in any way before or after that.
        """
        self.host.systemd.vms[vm].next_result = result
        self.host.publish(secrets)
        self.host.interrupted_turn(effects, self.host.die)

    @rule(effects=EFFECTS, secrets=SECRETS)
    def publish_during_a_turn(self, effects: int, secrets: dict[str, str]) -> None:
        """Another generation is published while the agent works."""
        self.host.interrupted_turn(effects, lambda: self.host.publish(secrets))

    @rule(effects=EFFECTS)
    def look_during_a_restart(self, effects: int) -> None:
        """While a VM is restarted, the loop looks and seals."""
        self.host.interrupted_turn(effects, self.host.when_free(self.host.glance, in_restart=True))

    @rule(effects=EFFECTS, changed=SETTINGS)
    def reload_during_a_restart(self, effects: int, changed: Settings) -> None:
        """The configuration changes while a VM is restarted.

        That restart goes on with the former configuration. If that has no pause, no pause follows it.
        """
        had_a_pause = self.host.settings.pause_seconds > 0
        self.host.configure(changed)
        self.host.interrupted_turn(effects, self.host.when_free(self.host.reload, in_restart=True))
        if not had_a_pause:
            self.host.worked.clear()
        self.host.reload()

    @rule(changed=SETTINGS)
    def reload(self, changed: Settings) -> None:
        """The configuration changes, and the agent reads it."""
        self.host.configure(changed)
        self.host.reload()

    @rule()
    def reload_the_same(self) -> None:
        """The agent reads the same configuration again."""
        self.host.reload()

    @rule()
    def restart_the_agent(self) -> None:
        """The agent ends, and is started again."""
        self.host.stop_agent()

    @rule(vm=NAMES)
    def start_by_hand(self, vm: str) -> None:
        """An operator restarts or starts a VM, which gets the current generation."""
        model = self.host.systemd.vms[vm]
        self.host.clock.pass_time(0.001)  # it is later than an order that was given before it
        self.host.systemd.start_vm(model)
        model.by_hand = model.values if model.is_up else model.by_hand

    @rule(vm=NAMES)
    def stop_by_hand(self, vm: str) -> None:
        """An operator stops a VM."""
        self.host.systemd.stop_vm(self.host.systemd.vms[vm])

    @rule(effects=EFFECTS, vm=NAMES)
    def stop_by_hand_during_a_turn(self, effects: int, vm: str) -> None:
        """An operator stops a VM while the agent works, perhaps on just that one."""
        model = self.host.systemd.vms[vm]
        self.host.interrupted_turn(effects, lambda: self.host.systemd.stop_vm(model))

    @rule(effects=EFFECTS, vm=NAMES)
    def stop_by_hand_and_crash(self, effects: int, vm: str) -> None:
        """An operator stops a VM, perhaps the one that is restarted, and the agent dies."""

        def stop_and_die() -> None:
            self.host.systemd.stop_vm(self.host.systemd.vms[vm])
            self.host.die()

        self.host.interrupted_turn(effects, stop_and_die)

    @rule(vm=NAMES, result=st.sampled_from(RESULTS))
    def end_the_next_job(self, vm: str, result: str) -> None:
        """The next restart of a VM that the agent asks for ends like this."""
        self.host.systemd.vms[vm].next_result = result

    @rule(vm=NAMES, result=st.sampled_from(["failed", "timeout"]))
    def end_the_next_unit(self, vm: str, result: str) -> None:
        """The next unit before or after a restart of a VM ends like this."""
        self.host.systemd.vms[vm].next_unit_result = result

    @rule(vm=NAMES, result=st.sampled_from(PUSH_RESULTS))
    def end_the_next_push(self, vm: str, result: str) -> None:
        """The next push to a VM ends like this."""
        self.host.systemd.vms[vm].guest.next_result = result

    @rule(effects=EFFECTS, secrets=SECRETS, vm=NAMES, result=st.sampled_from(PUSH_RESULTS))
    def publish_and_crash_in_a_push(
        self, effects: int, secrets: dict[str, str], vm: str, result: str
    ) -> None:
        """Something is published, and the agent dies before or after a push that ends like this."""
        self.host.systemd.vms[vm].guest.next_result = result
        self.host.publish(secrets)
        self.host.interrupted_turn(effects, self.host.die)

    @rule(vm=NAMES, order=st.sampled_from(Order))
    def order(self, vm: str, order: Order) -> None:
        """An operator gives an order."""
        if vm in self.host.settings.vms:
            self.host.order(vm, order)

    @rule()
    def lose_or_regain_the_bus(self) -> None:
        """Systemd cannot be reached for a while."""
        self.host.systemd.is_reachable = not self.host.systemd.is_reachable

    @rule(effects=EFFECTS)
    def lose_the_bus_during_a_turn(self, effects: int) -> None:
        """At some call, systemd cannot be reached any more."""

        def lose() -> None:
            self.host.systemd.is_reachable = False

        self.host.interrupted_turn(effects, lose)

    @rule()
    def lose_or_regain_the_journal(self) -> None:
        """The journal takes nothing for a while."""
        self.host.journal.is_taking = not self.host.journal.is_taking

    @rule(what=st.sampled_from(["files", "directories", "all", ""]))
    def fill_the_disk(self, what: str) -> None:
        """The disk has no room for some kinds of writes, or has room again."""
        self.host.full = what

    @rule(effects=EFFECTS, what=st.sampled_from(["files", "directories", "all"]))
    def fill_the_disk_during_a_turn(self, effects: int, what: str) -> None:
        """From the n-th effect on, the disk is full."""

        def fill() -> None:
            self.host.full = what

        self.host.interrupted_turn(effects, fill)
        self.host.full = ""

    @rule()
    def replace_the_key(self) -> None:
        """The host gets another key."""
        self.host.replace_key()

    @rule(effects=EFFECTS)
    def replace_the_key_during_a_turn(self, effects: int) -> None:
        """The host gets another key while the agent works."""
        self.host.interrupted_turn(effects, self.host.replace_key)

    @rule(mode=st.sampled_from([0o400, 0o600, 0o644]))
    def chmod_the_key(self, mode: int) -> None:
        """Somebody gives the host's key a mode that systemd takes, or one that it does not."""
        self.host.chmod_key(mode)

    @rule()
    def begin_or_end_a_switch(self) -> None:
        """A NixOS switch begins, or ends."""
        if self.host._switch is None:
            self.host.begin_switch()
        else:
            self.host.end_switch()

    @rule(vm=NAMES, how=st.sampled_from(FORGERIES))
    def forge(self, vm: str, how: str) -> None:
        """A VM's user writes what it can."""
        self.host.forge(vm, how)

    @rule(seconds=st.sampled_from([0.5, 3.0, 30.0, 700.0, 4000.0]))
    def pass_time(self, seconds: float) -> None:
        """Time passes."""
        self.host.clock.pass_time(seconds)

    @rule()
    def jump(self) -> None:
        """The wall clock is set back."""
        self.host.clock.wall_offset -= 400 * 86_400

    @rule()
    def settle(self) -> None:
        """All faults cease: every VM ends on exactly the published values, and then rests."""
        check_settled(self.host)

    @invariant()
    def steady(self) -> None:
        """What holds at every moment, and counts states of the world that differ."""
        check_steady(self.host)
        host = self.host
        attempts = (host.store.attempt(vm) for vm in VMS) if host.service is not None else ()
        World.states.add(
            (
                tuple(sorted((host.secrets or {"": ""}).items())),
                host.systemd.is_reachable,
                host.full,
                host.key_mode,
                *((vm.active, vm.sub, str(sorted(vm.values.items()))) for vm in host.systemd.vms.values()),
                *(each.outcome for each in attempts if each),
            )
        )


class TestWorld(World.TestCase):  # type: ignore[misc,valid-type]  # made by Hypothesis, at run time
    """All of it, so many times."""

    settings = settings(
        max_examples=RUNS,
        stateful_step_count=25,
        deadline=None,
        derandomize=not IS_LONG,  # one verdict on the same code
        suppress_health_check=[HealthCheck.too_slow],  # making a host takes most of a short history
    )

    def runTest(self) -> None:  # noqa: N802 (unittest's name)
        """Whatever happens, VMs end on what is published, restarted once."""
        World.runs, World.states = 0, set()
        super().runTest()
        if IS_LONG:  # a short run must not replace the numbers of a long one
            note(Number.MODEL_RUNS, World.runs)
            note(Number.MODEL_STATES, len(World.states))
