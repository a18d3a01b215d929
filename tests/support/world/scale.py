# SPDX-License-Identifier: MIT
"""A fleet at size: the rollout's part of many hosts, with the real code for slots, against a real etcd.

Of each host, the slots (claim, engine, settle) and the store are real. The decision that a restart is due,
the restart itself and time are modelled: a restart takes the same simulated time on each host, and a host
asks when its agent would. All hosts share the connections to etcd. So what is counted are the agents' own
requests, and what is timed is the waiting.
"""

from __future__ import annotations

import heapq
import random
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from credferry.agent.config.loading import parse
from credferry.agent.fleet.etcd import Etcd
from credferry.agent.fleet.gateway import Member
from credferry.agent.fleet.model import Holder
from credferry.agent.reconcile.decision import Decision, State
from credferry.agent.reconcile.desired import Refused
from credferry.agent.reconcile.observed import Observed
from credferry.agent.reconcile.observer import Look
from credferry.agent.rollout.fleet import FleetSlots
from credferry.agent.sealing.keys import CredentialKey
from credferry.agent.source.published import NOTHING
from credferry.agent.store.generations import Store
from credferry.agent.store.records import Attempt, Outcome, Way
from credferry.agent.systemd.units import UnitState
from tests.support.etcd import NO_TLS
from tests.support.world.clock import ModelClock
from tests.support.world.process import ModelThread

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from credferry.agent.config.model import Config
    from credferry.agent.fleet.transactions import Txn, TxnAnswer

GROUP: Final = "web"
_FLEET: Final = '[fleet]\nendpoints = ["http://127.0.0.1:2379"]\ngroup = "web"\n'
_VM: Final = '[vms.web.credentials]\nX = { secret = "x" }\n'
_UNIT: Final = UnitState("microvm@web.service", "loaded", "active", "running", "a" * 32, active_seconds=1e6)
_SPREAD_SECONDS: Final = 2.0
"""Within how many seconds the new secret arrives on all hosts."""
_REST_SECONDS: Final = 60.0
_TIMEOUT_SECONDS: Final = 20.0


@dataclass(slots=True)
class CountedMember(Member):
    """A member whose requests are counted, and timed by the real clock."""

    requests: int = 0
    seconds_asked: float = 0.0

    def transaction(self, txn: Txn) -> TxnAnswer:
        """See `Member`."""
        began = time.monotonic()
        try:
            return Member.transaction(self, txn)
        finally:
            self.requests += 1
            self.seconds_asked += time.monotonic() - began


@dataclass(slots=True)
class Run:
    """What one rollout through a fleet has shown."""

    hosts: int
    limit: int
    seconds: float = 0.0
    """Simulated time from the publication to the last restart's end."""
    requests: int = 0
    request_seconds: float = 0.0
    """Real time of all requests together."""
    restarted: int = 0
    tried: int = 0
    most_down: int = 0


@dataclass(slots=True)
class Host:
    """One host with one VM."""

    slots: FleetSlots
    thread: ModelThread
    is_done: bool = False
    is_failed: bool = False
    is_restarting: bool = False


@dataclass(slots=True)
class Scale:
    """Hosts that get the same secret at about the same moment."""

    top: Path
    urls: list[str]
    hosts: int
    limit: int
    restart_seconds: float = 5.0
    works: Callable[[int], bool] = lambda _: True
    """Whether the new value works on a host."""
    at: dict[int, Callable[[], None]] = field(default_factory=dict)
    """What happens once so many hosts are done."""
    _clock: ModelClock = field(default_factory=ModelClock)
    _random: random.Random = field(default_factory=lambda: random.Random(7))  # noqa: S311 (guards nothing)
    _events: list[tuple[float, int, int]] = field(default_factory=list)
    _down: int = 0

    def run(self) -> Run:
        """Roll the secret through all hosts, or until nothing moves for a minute."""
        found = Run(self.hosts, self.limit)
        config = parse(f"{_FLEET}{_VM}".encode(), self.top / "config.toml")
        key = CredentialKey(b"k" * 4096)
        members = [CountedMember(url, NO_TLS, None, _TIMEOUT_SECONDS) for url in self.urls]
        engine = Etcd(members)
        engine.limit(GROUP, self.limit)
        for member in members:
            member.requests, member.seconds_asked = 0, 0.0
        began = self._clock.now
        hosts = [self._host(number, config, key, engine) for number in range(self.hosts)]
        for number in range(self.hosts):
            self._later(number, self._random.uniform(0, _SPREAD_SECONDS))
        last = began
        while self._events:
            moment, _, number = heapq.heappop(self._events)
            self._clock.now = max(moment, self._clock.now)
            host, before = hosts[number], found.restarted + found.tried
            self._turn(number, host, found)
            if found.restarted + found.tried != before:
                last = self._clock.now
                found.seconds = last - began if found.restarted else found.seconds
            if found.restarted in self.at:
                self.at.pop(found.restarted)()
            if self._clock.now - last > _REST_SECONDS and not self._down:
                break
        engine.close()
        found.requests = sum(each.requests for each in members)
        found.request_seconds = sum(each.seconds_asked for each in members)
        return found

    def _host(self, number: int, config: Config, key: CredentialKey, engine: Etcd) -> Host:
        thread = ModelThread()
        me = Holder(f"h{number}", "", f"{number:032x}")
        store = Store(self.top / f"host{number}", key)
        slots = FleetSlots(
            config, store, engine, me, self._clock.parts(), thread, lambda: None, self._random.uniform
        )
        # The search at the start is not part of a rollout.
        slots._strays_at = float("inf")
        return Host(slots, thread)

    def _later(self, number: int, seconds: float) -> None:
        heapq.heappush(self._events, (self._clock.now + seconds, len(self._events), number))

    def _turn(self, number: int, host: Host, found: Run) -> None:
        """What the agent of one host does when it wakes up: it looks, works, and looks again."""
        vm = host.slots.config.vms["web"]
        if host.is_restarting:
            host.is_restarting = False
            if self.works(number):
                self._down -= 1
                host.is_done = True
                found.restarted += 1
            else:
                host.slots.failed(vm, "r", "its restart failed")
                host.is_failed = True
                found.tried += 1
                self._down -= 1  # it is rolled back
            host.slots.ended("web")
        elif not host.is_done and not host.is_failed and host.slots.left(vm) is None:
            if host.slots.claim(vm, "r"):
                host.is_restarting = True
                self._down += 1
                found.most_down = max(found.most_down, self._down)
                self._later(number, self.restart_seconds)
                return
            self._work(host)
        look = self._look(host)
        left = host.slots.settle(look, lambda _vm: False)
        if self._work(host):
            self._later(number, 0.05)
        elif look.decisions[0].awaits_slot:
            self._later(number, max(0.05, left))
        elif not host.is_done and not host.is_failed:
            self._later(number, 0.05)

    @staticmethod
    def _work(host: Host) -> bool:
        """Have the engine called for all that waits. Returns whether there was anything."""
        has_worked = False
        while host.thread.work_on_one():
            has_worked = True
        return has_worked

    def _look(self, host: Host) -> Look:
        vm = host.slots.config.vms["web"]
        attempt = Attempt("d" * 64, Outcome.ROLLED_BACK, "it failed", 1, "r") if host.is_failed else None
        now = Observed(vm, Refused(("not looked at",)), None, _UNIT, None, None, attempt)
        decision = Decision(vm, State.IN_STEP)
        if host.is_failed:
            decision = Decision(vm, State.FAILED)
        elif not host.is_done:
            waits = host.slots.left(vm)
            decision = Decision(vm, State.RESTART_DUE, way=Way.RESTART)
            if waits is not None:
                decision = replace(decision, way=None, awaits_slot=True)
        return Look(NOTHING, (now,), (decision,))
