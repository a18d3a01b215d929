# SPDX-License-Identifier: MIT
"""Slots of a fleet in the daemon's real loop, with the real engine before a modelled etcd."""

from __future__ import annotations

import errno
import math
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING
from unittest.mock import Mock, patch

import pytest

from credferry.agent.audit.events import Event, Order
from credferry.agent.errors import StoreError
from credferry.agent.fleet import keys
from credferry.agent.fleet.cluster import Known
from credferry.agent.fleet.model import (
    Applied,
    Granted,
    Group,
    Halt,
    Holder,
    OfHost,
    Unavailable,
    machine_of,
)
from credferry.agent.reconcile.decision import State
from credferry.agent.reconcile.observer import Look
from credferry.agent.rollout.clock import Clock
from credferry.agent.rollout.fleet import FleetSlots
from credferry.agent.rollout.fleet_calls import AWAY
from credferry.agent.rollout.operators import Operator
from credferry.agent.source import published
from credferry.agent.store.fleet_cluster import FleetCluster
from credferry.agent.store.records import Attempt, Claim, Outcome
from tests.support.loop import MACHINE_ID, Loop
from tests.support.world.etcd import ModelEtcd, ModelMember, model_engine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from credferry.agent.config.fleet import FleetConfig
    from credferry.agent.fleet.cluster import ClusterRecord
    from credferry.agent.fleet.etcd import Etcd
    from credferry.agent.rollout.slots import FleetView

FLEET = '[fleet]\nendpoints = ["http://127.0.0.1:2379"]\ngroup = "web"\nhost = "h1"\n'
A = '[vms.a.credentials]\nX = { secret = "x" }\n'
B = '[vms.b.credentials]\nX = { secret = "x" }\n'
ME = Holder("h1", "a", machine_of(MACHINE_ID.encode()))
OTHER = Holder("h2", "a", "f" * 32)
UNIT = "microvm@a.service"
ROOT = Operator(0)
NOTHING = Look(published.NOTHING, (), ())
RESUME = "once that is corrected: credferry fleet resume web"


class Fleet:
    """One host of a fleet, its etcd, and another host's engine."""

    def __init__(self, top: Path, vms: str = A) -> None:
        self.etcd = ModelEtcd()
        self.member = ModelMember(self.etcd)
        self.other: Etcd = model_engine(ModelMember(self.etcd))
        self.loop = Loop(top, FLEET + vms)
        self.loop.parts = replace(self.loop.parts, engine=self.open)
        self.loop.publish(x="one")
        self.during: list[list[str]] = []
        """Who held a slot at each restart and push."""
        self.loop.units.job = self._restart
        self.loop.units.push = self._push

    def open(self, _config: FleetConfig, record: ClusterRecord) -> Etcd:
        """The agent's engine."""
        return model_engine(self.member, known=Known(record))

    @property
    def slots(self) -> FleetSlots:
        """The agent's slots."""
        found = self.loop.service._session.pacer.slots
        assert isinstance(found, FleetSlots)
        return found

    @property
    def view(self) -> FleetView:
        """What the agent shows of its fleet."""
        return self.slots.view()

    def begin(self) -> None:
        """Each VM runs what is published, and the agent has looked for strays."""
        self.hurry()
        self.loop.turn()
        for vm in self.loop.service._session.config.vms:
            self.loop.start_vm(vm)
        self.loop.turn(lambda: self.is_settled() and self.member.requests)

    def hurry(self) -> None:
        """The agent asks again at once."""
        self.slots.uniform = lambda *_: 0.02

    def state(self, vm: str = "a") -> State:
        """Where a VM stands, whoever it waits for."""
        return self.loop.decision(vm).state

    def shown(self, vm: str = "a") -> tuple[State, str]:
        """How ``plan`` shows a VM."""
        look = self.loop.service._orders.plan()
        decision = next(each for each in look.decisions if each.vm.name == vm)
        return decision.state, "; ".join(decision.shown)

    def is_settled(self) -> bool:
        """Whether all VMs run what is published, and no slot is held."""
        vms = self.loop.service._session.config.vms
        return all(self.state(vm) is State.IN_STEP for vm in vms) and not self.held()

    def held(self) -> list[str]:
        """Who holds a slot."""
        return [each.holder.name for each in self.etcd.group("web").slots]

    @property
    def halt(self) -> Halt | None:
        """The group's halt."""
        found = self.etcd.group("web").halt
        assert found is None or isinstance(found, Halt)
        return found

    def claim(self, vm: str = "a") -> Claim | None:
        """The claim on disk."""
        return self.loop.store.claim(vm)

    def _restart(self, unit: str) -> str:
        self.during.append(self.held())
        return self.loop._restart(unit)

    def _push(self, unit: str) -> str:
        self.during.append(self.held())
        return self.loop.push(unit)

    def fail(self, unit: str) -> str:
        """A restart fails, but for one onto the first generation or the third."""
        self.during.append(self.held())
        vm = unit.removeprefix("microvm@").removesuffix(".service")
        manifest = self.loop.store.current(vm)
        assert manifest is not None
        if manifest.generation == 2:
            return self.loop.fail_vm(vm)
        return self.loop._restart(unit)

    def fail_and_lose(self, unit: str) -> str:
        """As `fail`, and from now on no request reaches the engine."""
        self.member.fate = lambda: "lost"
        return self.fail(unit)


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    """A host with one VM, which runs what is published."""
    made = Fleet(tmp_path)
    made.loop.configure(FLEET + A, "attempts = 1")
    with made.loop.running():
        made.begin()
        yield made


def test_a_restart_has_a_slot_and_gives_it_back(fleet: Fleet) -> None:
    """The VM holds a slot while it is restarted, and neither slot nor claim stays."""
    fleet.loop.publish(x="two")
    fleet.loop.turn(fleet.is_settled)
    assert fleet.during == [["a on h1"]]
    fleet.loop.turn(lambda: fleet.claim() is None)
    assert fleet.view.held == ()


def test_a_push_has_a_slot(tmp_path: Path) -> None:
    """A push to a running guest needs a slot, too."""
    fleet = Fleet(tmp_path, A.replace("[vms.a.credentials]", "[vms.a]\nlive = true\n[vms.a.credentials]"))
    with fleet.loop.running():
        fleet.begin()
        fleet.loop.publish(x="two")
        fleet.loop.turn(fleet.is_settled)
        assert fleet.loop.units.pushes
        assert fleet.during == [["a on h1"]]
        assert not fleet.loop.units.restarts


def test_a_push_that_fails_keeps_its_slot_for_the_restart(tmp_path: Path) -> None:
    """The slot is not given back between a failed push and the restart that follows."""
    fleet = Fleet(tmp_path, A.replace("[vms.a.credentials]", "[vms.a]\nlive = true\n[vms.a.credentials]"))
    with fleet.loop.running():
        fleet.begin()
        fleet.loop.units.push = fleet.loop.fail_push(82)
        fleet.loop.publish(x="two")
        fleet.loop.turn(fleet.is_settled)
        assert fleet.loop.units.restarts == [UNIT]
        assert fleet.during == [["a on h1"]]


def test_a_vm_waits_for_a_slot_and_says_for_whom(fleet: Fleet) -> None:
    """While others hold the slots, the VM waits; it shows who holds them, and the audit has one record."""
    assert isinstance(fleet.other.acquire("web", OTHER, "r"), Granted)
    fleet.loop.publish(x="two")
    fleet.loop.turn(lambda: fleet.view.awaited)
    for _ in range(3):
        fleet.loop.turn(lambda: fleet.view.awaited)
    assert fleet.shown() == (
        State.WAITING,
        "until group web of its fleet has a free slot; 1 of 1 slots are held: a on h2",
    )
    assert not fleet.loop.units.restarts
    assert fleet.loop.events().count(Event.WAITING) == 1
    fleet.other.release("web", OTHER)
    fleet.loop.turn(fleet.is_settled)
    assert fleet.loop.units.restarts == [UNIT]


def test_a_vm_that_need_not_wait_any_more_asks_no_more(fleet: Fleet) -> None:
    """The former value is published again: the claim goes, though the slots are taken."""
    fleet.other.acquire("web", OTHER, "r")
    fleet.loop.publish(x="two")
    fleet.loop.turn(lambda: fleet.view.awaited)
    fleet.loop.publish(x="one")
    fleet.loop.turn(lambda: fleet.claim() is None and not fleet.view.awaited)
    asked = fleet.member.requests
    for _ in range(3):
        fleet.loop.turn()
    assert fleet.member.requests == asked
    assert not fleet.loop.units.restarts


def test_a_failure_halts_the_group_and_keeps_the_slot(fleet: Fleet) -> None:
    """A bad value is tried on one VM; the group is halted for it, and the slot stays."""
    fleet.loop.units.job = fleet.fail
    fleet.loop.publish(x="bad")
    fleet.loop.turn(lambda: fleet.state() is State.FAILED and fleet.halt is not None)
    assert fleet.halt is not None
    assert fleet.halt.holder == ME
    assert fleet.halt.why.startswith("its restart for run ")
    assert fleet.held() == ["a on h1"]
    for _ in range(3):
        fleet.loop.turn()
    assert fleet.held() == ["a on h1"]
    assert fleet.view.halted["web"] == fleet.halt.text


def test_a_newer_value_that_works_resumes_the_group(fleet: Fleet) -> None:
    """The VM that halted the group may try a newer value, and ends the halt once it is well."""
    fleet.loop.units.job = fleet.fail
    fleet.loop.publish(x="bad")
    fleet.loop.turn(lambda: fleet.state() is State.FAILED and fleet.halt is not None)
    fleet.loop.publish(x="good")
    fleet.loop.turn(lambda: fleet.is_settled() and fleet.halt is None)
    fleet.loop.turn(lambda: fleet.claim() is None)
    assert all(each == ["a on h1"] for each in fleet.during)


def test_a_group_that_is_resumed_gets_its_slot_back(fleet: Fleet) -> None:
    """Once an operator has ended the halt, the VM that runs its former value needs no slot."""
    fleet.loop.units.job = fleet.fail
    fleet.loop.publish(x="bad")
    fleet.loop.turn(lambda: fleet.state() is State.FAILED and fleet.halt is not None)
    fleet.other.resume("web")
    fleet.loop.turn(lambda: not fleet.held() and fleet.claim() is None)
    assert fleet.state() is State.FAILED
    assert fleet.halt is None


def test_a_halt_by_others_stops_the_vm(fleet: Fleet) -> None:
    """While the group is halted, the VM waits and says for whose failure; once resumed, it goes on."""
    fleet.other.halt("web", OTHER, "r", "it failed")
    fleet.loop.publish(x="two")
    fleet.loop.turn(lambda: fleet.view.awaited)
    assert fleet.shown() == (
        State.WAITING,
        f"until group web of its fleet is resumed; it was halted for a on h2: it failed; {RESUME}",
    )
    assert not fleet.loop.units.restarts
    fleet.other.resume("web")
    fleet.loop.turn(fleet.is_settled)


def test_an_engine_that_is_away_stops_restarts_and_nothing_else(
    fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sealing goes on, restarts wait, and one line is logged when it begins and one when it ends."""
    fleet.member.fate = lambda: "lost"
    fleet.loop.publish(x="two")
    fleet.loop.turn(lambda: fleet.view.awaited)
    for _ in range(3):
        fleet.loop.turn(lambda: fleet.view.awaited)
    assert fleet.view.away is not None
    assert fleet.shown() == (
        State.WAITING,
        "until its fleet's engine can be used; http://model: it does not answer: wait",
    )
    manifest = fleet.loop.store.current("a")
    assert manifest is not None
    assert manifest.generation == 2
    assert not fleet.loop.units.restarts
    assert "fleet" in fleet.loop.service._conditions.keys
    fleet.member.fate = lambda: ""
    fleet.loop.turn(fleet.is_settled)
    fleet.loop.turn(lambda: "fleet" not in fleet.loop.service._conditions.keys)
    assert fleet.view.away is None
    said = "".join(capsys.readouterr())
    assert said.count("engine cannot be used") == 1
    assert said.count("engine can be used again") == 1


def test_another_cluster_after_a_restart_of_the_agent_restarts_nothing(
    fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    """The agent seals, says one line with the remedy, and goes on once an operator had it forgotten."""
    fleet.etcd.cluster = "8"
    with fleet.loop.running():
        fleet.hurry()
        fleet.loop.publish(x="two")
        for _ in range(3):
            fleet.loop.turn(lambda: fleet.view.awaited)
        assert fleet.view.away is not None
        assert "another cluster" in fleet.view.away.reason
        assert "credferry fleet forget-cluster" in fleet.shown()[1]
        manifest = fleet.loop.store.current("a")
        assert manifest is not None
        assert manifest.generation == 2
        assert not fleet.loop.units.restarts
        assert not fleet.held()
        fleet.loop.turn(lambda: "fleet" in fleet.loop.service._conditions.keys)
        assert FleetCluster(fleet.loop.top / "state").forget()
        fleet.loop.turn(fleet.is_settled)
        assert fleet.loop.units.restarts == [UNIT]
        assert "".join(capsys.readouterr()).count("engine cannot be used") == 1


@pytest.mark.parametrize("how", ["a reload", "an end"])
def test_what_the_agent_has_seen_of_etcd_outlasts_it(fleet: Fleet, how: str) -> None:
    """A reload makes another engine, and an end none: either writes down how far etcd had come."""
    record = FleetCluster(fleet.loop.top / "state")
    with fleet.loop.made() as service:
        for _ in range(3):
            assert fleet.other.limit("web", 2) == Applied(1)
            assert isinstance(fleet.slots.engine.state("web"), Group)
        assert record.read() != ("7", fleet.etcd.revision)
        if how == "a reload":
            service._reload()
        else:
            service._stop.set()
            service.run()
    assert record.read() == ("7", fleet.etcd.revision)


def test_a_release_that_fails_is_tried_again(fleet: Fleet) -> None:
    """The slot that the engine did not take back is given back once it answers."""

    def restart(unit: str) -> str:
        fleet.member.fate = lambda: "lost"
        return fleet._restart(unit)

    fleet.loop.units.job = restart
    fleet.loop.publish(x="two")
    fleet.loop.turn(lambda: fleet.view.away)
    assert fleet.held() == ["a on h1"]
    assert fleet.claim() is not None
    fleet.member.fate = lambda: ""
    fleet.loop.turn(fleet.is_settled)
    fleet.loop.turn(lambda: fleet.claim() is None)


def test_a_halt_that_was_not_delivered_is_told_later(fleet: Fleet) -> None:
    """The engine is away when the VM fails: the group is halted once it answers, by the record on disk."""
    fleet.loop.units.job = fleet.fail_and_lose
    fleet.loop.publish(x="bad")
    fleet.loop.turn(lambda: fleet.state() is State.FAILED)
    claim = fleet.claim()
    assert claim is not None
    assert (bool(claim.halt), claim.is_told) == (True, False)
    fleet.loop.units.job = fleet.fail
    fleet.member.fate = lambda: ""
    fleet.loop.turn(lambda: fleet.halt is not None)
    assert fleet.held() == ["a on h1"]


def test_a_slow_engine_holds_up_no_sealing_and_no_stop(fleet: Fleet) -> None:
    """While a call hangs, the loop looks and seals, and a stop of the agent does not wait for the call."""
    hangs, goes_on = threading.Event(), threading.Event()

    def hang() -> str:
        hangs.set()
        goes_on.wait(20)
        return ""

    fleet.member.fate = hang
    try:
        fleet.loop.publish(x="two")
        fleet.loop.turn(hangs.is_set)
        assert fleet.shown() == (State.RESTART_DUE, "until its fleet answers")
        fleet.loop.publish(x="three")

        def is_sealed() -> bool:
            manifest = fleet.loop.store.current("a")
            return manifest is not None and manifest.generation == 3

        fleet.loop.turn(is_sealed)
        fleet.loop.service._restarts.stop()
    finally:
        goes_on.set()
    assert not fleet.loop.units.restarts


def test_a_vm_that_is_down_by_the_agent_asks_nobody(fleet: Fleet) -> None:
    """A rollback, and a start of a VM that a restart left down, wait for no slot and no engine."""
    fleet.loop.units.job = fleet.fail_and_lose
    fleet.loop.publish(x="bad")
    fleet.loop.turn(lambda: fleet.state() is State.FAILED)
    assert fleet.loop.units.unit(UNIT).is_active, "it is rolled back"
    assert len(fleet.loop.units.restarts) == 2


def test_a_full_disk_takes_no_slot(fleet: Fleet) -> None:
    """Without a claim on disk, the engine is not asked; the agent goes on once there is room."""
    asked = fleet.member.requests
    with patch.object(type(fleet.loop.store), "record_claim", side_effect=_full):
        fleet.loop.publish(x="two")
        fleet.loop.turn(lambda: fleet.loop.turned.failure is not None)
    assert fleet.member.requests == asked
    assert fleet.held() == []
    fleet.loop.turn(fleet.is_settled)


def _full(*_: object) -> None:
    raise StoreError(str(errno.ENOSPC), hint="wait")


def test_strays_are_given_back_at_the_start(tmp_path: Path) -> None:
    """A slot in this host's name that no claim knows is given back; that of another host stays."""
    fleet = Fleet(tmp_path)
    fleet.other.limit("web", 3)
    for holder in (ME, replace(ME, vm="gone"), OTHER):
        assert isinstance(fleet.other.acquire("web", holder, "r"), Granted)
    with fleet.loop.running():
        fleet.hurry()
        fleet.loop.turn()
        fleet.loop.turn(lambda: fleet.held() == ["a on h2"])


def test_a_halt_that_arrives_after_its_end_is_ended(fleet: Fleet) -> None:
    """A halt in this host's name that no claim knows holds up no VM of it: the agent ends it."""
    assert fleet.other.halt("web", ME, "r", "it arrived late") == Applied()
    fleet.loop.publish(x="two")
    fleet.loop.turn(fleet.is_settled)
    assert fleet.halt is None


def test_a_halt_that_a_claim_knows_is_not_ended(tmp_path: Path) -> None:
    """Another VM of the host waits for the operator, as on every other host."""
    fleet = Fleet(tmp_path, A + B.replace('"x"', '"y"'))
    fleet.loop.publish(x="one", y="one")
    with fleet.loop.running():
        fleet.begin()
        fleet.loop.units.job = fleet.fail
        fleet.loop.publish(x="bad", y="one")
        fleet.loop.turn(lambda: fleet.state() is State.FAILED and fleet.halt is not None)
        fleet.loop.publish(x="bad", y="two")
        asked = fleet.member.requests
        fleet.loop.turn(lambda: fleet.shown("b")[0] is State.WAITING and fleet.member.requests > asked + 5)
        assert fleet.halt is not None
        assert not fleet.loop.units.unit("microvm@b.service").has_job


def test_a_slot_that_arrives_after_it_was_given_back_is_searched(fleet: Fleet) -> None:
    """The agent searches soon after a call without an answer for what came of it, not only once an hour."""
    passed = 0.0
    fleet.slots.clock = Clock(monotonic=lambda: time.monotonic() + passed)
    fleet.slots.uniform = lambda _, most: most
    fates = ["", "late"]
    fleet.member.fate = lambda: fates.pop(0) if fates else ""
    fleet.loop.publish(x="two")
    fleet.loop.turn(lambda: fleet.view.away is not None)
    fleet.loop.publish(x="one")
    fleet.loop.turn(lambda: fleet.claim() is None and fleet.state() is State.IN_STEP)
    fleet.member.arrive()
    assert fleet.held() == ["a on h1"]
    passed = 61.0
    fleet.loop.turn(lambda: not fleet.held())


def test_one_search_at_a_time(tmp_path: Path) -> None:
    """While etcd hangs, a search ends with its first call, and no other one waits behind it."""
    vms = "".join(
        f'[vms.v{n}]\nfleet_group = "g{n}"\n[vms.v{n}.credentials]\nX = {{ secret = "x" }}\n' for n in "123"
    )
    fleet = Fleet(tmp_path, vms)
    passed = 0.0
    searches: list[Callable[[], None]] = []

    def hang() -> str:
        nonlocal passed
        passed += 100.0
        fleet.slots.settle(NOTHING, lambda _: False)
        return "lost"

    with fleet.loop.running():
        slots = fleet.slots
        slots.thread = Mock(submit=searches.append)
        slots.clock = Clock(monotonic=lambda: passed)
        slots._strays_at = 0.0
        fleet.member.fate = hang
        before = fleet.member.requests
        for number in range(1, 4):
            slots.settle(NOTHING, lambda _: False)
            assert len(searches) == 1
            assert slots.settle(NOTHING, lambda _: False) == math.inf
            searches.pop()()
            assert not searches
            assert fleet.member.requests == before + number
            assert slots.settle(NOTHING, lambda _: False) <= AWAY[1]
            passed += AWAY[1]


def test_a_group_that_always_fails_hides_no_other(tmp_path: Path) -> None:
    """Where etcd refuses one group of the host, a late halt of another one is found all the same."""
    vms = "".join(f'[vms.{vm}]\nfleet_group = "{vm}"\n{table}' for vm, table in (("a", A), ("b", B)))
    fleet = Fleet(tmp_path, vms)
    plain = type(fleet.other).state

    def state(engine: Etcd, group: str) -> Group | Unavailable:
        return (
            Unavailable("it refuses the request", "see etcd's log") if group == "a" else plain(engine, group)
        )

    with fleet.loop.running(), patch.object(type(fleet.other), "state", state):
        fleet.hurry()
        assert fleet.other.halt("b", replace(ME, vm="b"), "r", "it arrived late") == Applied()
        fleet.slots._strays_at = 0.0
        fleet.loop.turn(lambda: fleet.etcd.group("b").halt is None)


def test_a_claim_that_was_lost_is_made_anew(fleet: Fleet) -> None:
    """The slot of a VM that failed stays, though its claim is gone: it is found in the engine."""
    fleet.loop.units.job = fleet.fail
    fleet.loop.publish(x="bad")
    fleet.loop.turn(lambda: fleet.state() is State.FAILED and fleet.halt is not None)
    store = fleet.loop.store
    store.record_claim("a", None)
    fleet.slots._strays_at = 0.0
    fleet.loop.turn(lambda: (claim := store.claim("a")) is not None and bool(claim.halt))
    assert fleet.held() == ["a on h1"]
    assert fleet.halt is not None


def test_a_vm_that_is_gone_gives_its_slot_back(tmp_path: Path) -> None:
    """The claim of a VM that the configuration no longer names is settled."""
    fleet = Fleet(tmp_path, A + B)
    with fleet.loop.running():
        fleet.begin()
        holder = replace(ME, vm="b")
        fleet.other.acquire("web", holder, "r")
        fleet.loop.store.record_claim("b", Claim("web", "h1", "r"))
        fleet.loop.configure(FLEET + A)
        fleet.loop.service._reload()
        fleet.hurry()
        fleet.loop.turn(lambda: not fleet.held() and fleet.claim("b") is None)


def test_a_refused_vm_that_came_up_well_gives_its_slot_back(fleet: Fleet) -> None:
    """The agent died in its restart, and its secret is gone: what was begun ends all the same."""
    store = fleet.loop.store
    manifest = store.current("a")
    assert manifest is not None
    assert isinstance(fleet.other.acquire("web", ME, manifest.run), Granted)
    store.record_claim("a", Claim("web", "h1", manifest.run))
    attempt = Attempt(manifest.digest, Outcome.RESTARTING, previous=1, run=manifest.run, before="e" * 32)
    store.record_attempt("a", attempt)
    fleet.loop.publish(other="x")
    fleet.loop.turn(lambda: not fleet.held())
    assert fleet.loop.decision("a").state is State.REFUSED
    assert store.attempt("a") is None


def test_another_group_gives_the_old_slot_back_first(fleet: Fleet) -> None:
    """A VM that changes its group asks in the new one once the slot of the old one is given back."""
    fleet.other.acquire("web", ME, "r")
    fleet.loop.store.record_claim("a", Claim("web", "h1", "r"))
    fleet.loop.publish(x="two")
    fleet.loop.configure(FLEET + '[vms.a]\nfleet_group = "db"\n' + A)
    fleet.loop.service._reload()
    fleet.hurry()
    fleet.loop.turn(lambda: fleet.loop.units.restarts and fleet.claim() is None)
    assert not fleet.held()
    assert not fleet.etcd.group("db").held


def test_canary_seconds_keep_the_slot(tmp_path: Path) -> None:
    """The slot is given back once the VM has run its new secrets for ``canary_seconds``."""
    fleet = Fleet(tmp_path)
    fleet.loop.configure(FLEET + A, "canary_seconds = 1000")
    with fleet.loop.running():
        fleet.hurry()
        fleet.loop.turn()
        fleet.loop.start_vm("a")
        fleet.loop.turn()
        fleet.loop.publish(x="two")
        fleet.loop.turn(lambda: fleet.loop.units.restarts and fleet.state() is State.IN_STEP)
        for _ in range(3):
            fleet.loop.turn()
        assert fleet.held() == ["a on h1"]
        assert fleet.loop.turned.delay <= 901
        fleet.loop.units.set(UNIT, active_seconds=1001.0)
        fleet.loop.turn(fleet.is_settled)


def test_a_vm_that_was_denied_does_not_wait_for_canary_seconds(tmp_path: Path) -> None:
    """A claim that was never used goes at once: it must not keep a neighbour from asking."""
    fleet = Fleet(tmp_path)
    fleet.loop.configure(FLEET + A, "canary_seconds = 1000")
    with fleet.loop.running():
        fleet.hurry()
        fleet.loop.turn()
        fleet.loop.start_vm("a")
        fleet.loop.turn()
        fleet.other.acquire("web", OTHER, "r")
        fleet.loop.publish(x="two")
        fleet.loop.turn(lambda: fleet.view.awaited)
        fleet.loop.publish(x="one")
        fleet.loop.turn(lambda: fleet.claim() is None and not fleet.view.awaited)


def test_a_vm_whose_unit_was_restarted_often_needs_a_slot(fleet: Fleet) -> None:
    """Systemd's count of restarts says nothing about now: a VM that is up waits for a slot."""
    fleet.loop.units.set(UNIT, restarts=9)
    fleet.other.acquire("web", OTHER, "r")
    fleet.loop.publish(x="two")
    fleet.loop.turn(lambda: fleet.view.awaited)
    assert fleet.shown()[0] is State.WAITING
    assert not fleet.loop.units.restarts
    fleet.other.release("web", OTHER)
    fleet.loop.turn(lambda: fleet.loop.units.restarts and fleet.is_settled())


def test_a_slot_that_nobody_gives_back_is_taken_away(tmp_path: Path) -> None:
    """With ``stale_seconds``, a VM that waits frees a slot that it has seen unchanged for so long."""
    fleet = Fleet(tmp_path)
    fleet.loop.configure(FLEET + "stale_seconds = 0.2\n" + A)
    with fleet.loop.running():
        fleet.begin()
        fleet.other.acquire("web", OTHER, "r")
        fleet.loop.publish(x="two")
        fleet.loop.turn(lambda: fleet.loop.units.restarts and fleet.is_settled())


def test_two_vms_of_one_host_ask_one_after_the_other(tmp_path: Path) -> None:
    """A host asks for no more slots at a time than it can restart VMs; the second says what it waits for."""
    fleet = Fleet(tmp_path, A + B)
    with fleet.loop.running():
        fleet.begin()
        fleet.other.acquire("web", OTHER, "r")
        fleet.loop.publish(x="two")
        fleet.loop.turn(lambda: fleet.view.awaited)
        assert len(fleet.view.awaited) == 1
        assert {fleet.shown(vm)[0] for vm in "ab"} == {State.WAITING}
        fleet.other.release("web", OTHER)
        fleet.loop.turn(fleet.is_settled)
        assert len(fleet.loop.units.restarts) == len("ab")
        assert all(len(each) == 1 for each in fleet.during)


def test_a_vm_that_holds_the_slot_waits_for_no_neighbour(tmp_path: Path) -> None:
    """A neighbour that is denied a slot does not stop the VM that has it, which alone can give it back."""
    fleet = Fleet(tmp_path, A.replace('"x"', '"y"') + B)
    fleet.loop.configure(FLEET + A + B.replace('"x"', '"y"'), "attempts = 1")
    fleet.loop.publish(x="one", y="one")
    with fleet.loop.running():
        fleet.begin()
        fleet.loop.units.job = fleet.fail
        fleet.loop.publish(x="bad", y="one")
        fleet.loop.turn(lambda: fleet.state() is State.FAILED and fleet.halt is not None)
        fleet.loop.publish(x="bad", y="two")
        fleet.loop.turn(lambda: fleet.view.awaited)
        fleet.loop.units.job = fleet._restart
        fleet.loop.publish(x="good", y="two")
        fleet.loop.turn(fleet.is_settled)


def order(fleet: Fleet, kind: Order, *, with_slot: bool = True) -> str:
    """Give an order, and wait for its end. Returns why it was not carried out."""
    fleet.loop.service._orders.give("a", kind, ROOT, with_slot=with_slot)
    fleet.loop.turn(lambda: fleet.loop.service._orders.given("a") is None)
    return fleet.loop.service._orders.result("a")


@pytest.mark.parametrize("kind", [Order.ROTATE, Order.RESTART, Order.ROLL_BACK])
def test_an_order_is_refused_while_there_is_no_slot(fleet: Fleet, kind: Order) -> None:
    """An operator's order asks once, and is refused with the name of who holds the slot."""
    fleet.loop.publish(x="two")
    fleet.loop.turn(fleet.is_settled)
    before = len(fleet.loop.units.restarts)
    fleet.other.acquire("web", OTHER, "r")
    assert order(fleet, kind) == (
        "a: its order would have to wait until group web of its fleet has a free slot; "
        "1 of 1 slots are held: a on h2: give it again later, or give it with --without-slot"
    )
    assert len(fleet.loop.units.restarts) == before
    assert Event.ORDER_DROPPED in fleet.loop.events()
    assert order(fleet, kind, with_slot=False) == ""
    assert len(fleet.loop.units.restarts) == before + 1
    assert any("without a slot of the fleet" in message for _, message in fleet.loop.told())


@pytest.mark.parametrize("kind", [Order.ROTATE, Order.RESTART, Order.ROLL_BACK])
def test_an_order_takes_a_slot_and_gives_it_back(fleet: Fleet, kind: Order) -> None:
    """With a free slot, the order is carried out, and the slot is given back."""
    fleet.loop.publish(x="two")
    fleet.loop.turn(fleet.is_settled)
    fleet.during.clear()
    assert order(fleet, kind) == ""
    fleet.loop.turn(lambda: not fleet.held() and fleet.claim() is None)
    assert fleet.during == [["a on h1"]]


def test_a_retry_tries_the_same_value_with_the_slot_that_is_held(fleet: Fleet) -> None:
    """``retry`` only marks the VM. Its own halt does not stop it, and is ended if the value works now."""
    fleet.loop.units.job = fleet.fail
    fleet.loop.publish(x="bad")
    fleet.loop.turn(lambda: fleet.state() is State.FAILED and fleet.halt is not None)
    fleet.loop.units.job = fleet._restart
    fleet.loop.service._orders.give("a", Order.RETRY, ROOT)
    fleet.loop.turn(lambda: fleet.is_settled() and fleet.halt is None)


def test_a_vm_that_is_stopped_by_hand_gives_its_slot_back(fleet: Fleet) -> None:
    """A VM that an operator stops while it waits is not down by the agent."""
    fleet.other.acquire("web", ME, "r")
    fleet.loop.store.record_claim("a", Claim("web", "h1", "r"))
    fleet.loop.stop_vm("a")
    fleet.loop.turn(lambda: not fleet.held() and fleet.claim() is None)


def test_a_slot_is_freed_by_an_operator_and_the_agent_does_not_mind(fleet: Fleet) -> None:
    """The claim of a slot that is gone in the engine goes, too."""
    fleet.loop.units.job = fleet.fail
    fleet.loop.publish(x="bad")
    fleet.loop.turn(lambda: fleet.state() is State.FAILED and fleet.halt is not None)
    fleet.other.free("web", OfHost("h1"))
    fleet.other.resume("web")
    fleet.loop.turn(lambda: fleet.claim() is None)


def test_a_host_without_a_fleet_is_not_held_up(tmp_path: Path) -> None:
    """Without ``[fleet]``, nothing is asked and nothing is written."""
    loop = Loop(tmp_path, A)
    loop.publish(x="one")
    with loop.running() as service:
        loop.turn()
        loop.start_vm("a")
        loop.turn()
        loop.publish(x="two")
        loop.turn(lambda: loop.units.restarts and loop.decision("a").state is State.IN_STEP)
        assert service._session.store.claimed() == []
        assert service._session.pacer.slots.view().held == ()


def test_the_attempt_says_that_it_failed_only_after_the_claim(fleet: Fleet) -> None:
    """A crash between the two records leaves a claim that halts the group."""
    store = fleet.loop.store
    record, seen = type(store).record_attempt, []

    def watch(self: object, vm: str, attempt: object) -> None:
        if getattr(attempt, "outcome", None) is Outcome.FAILED:
            claim = store.claim("a")
            seen.append(claim is not None and bool(claim.halt))
        record(self, vm, attempt)  # type: ignore[arg-type]  # as the method that it replaces

    fleet.loop.units.job = fleet.fail
    with patch.object(type(store), "record_attempt", watch):
        fleet.loop.publish(x="bad")
        fleet.loop.turn(lambda: fleet.state() is State.FAILED and fleet.halt is not None)
    assert seen
    assert all(seen)
    assert keys.halt_key("web").encode() in fleet.etcd.pairs
