# SPDX-License-Identifier: MIT
"""Calls of a fleet's engine: each is a job of one thread, and notes what the answer says.

Each job begins with a read in the engine, so it may be repeated after a crash or a lost answer.
"""

from __future__ import annotations

import random
import threading
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

from credferry.agent.fleet.model import Applied, Full, Granted, Group, Halted, Holder, Unavailable
from credferry.agent.messages import Messages
from credferry.agent.rollout.fleet_memory import Memory, SlotTurn, Stage
from credferry.agent.rollout.slot_denial import denial
from credferry.agent.rollout.slots import Away
from credferry.agent.rollout.stale import Stale
from credferry.agent.rollout.strays import Strays

if TYPE_CHECKING:
    from collections.abc import Callable

    from credferry.agent.config.model import Config, VmConfig
    from credferry.agent.fleet.model import Acquired, Changed, Engine
    from credferry.agent.rollout.clock import Clock
    from credferry.agent.store.generations import Store
    from credferry.agent.store.records import Claim

_log = Messages()
ASK_AGAIN: Final = (5.0, 15.0)
"""Between how many seconds a VM waits, by chance, before it asks again for a slot."""
AWAY: Final = (30.0, 60.0)
"""The same where the engine does not answer, and for calls other than that for a slot."""


class Submits(Protocol):
    """See `EngineThread`."""

    def submit(self, job: Callable[[], None]) -> None:
        """Carry out a job soon."""

    def raise_error(self) -> None:
        """Raise an error that a job could not handle, if there is one."""


@dataclass(slots=True)
class FleetCalls:
    """What the engine is asked, and what is remembered of its answers, for the whole run of an agent."""

    config: Config
    store: Store
    engine: Engine
    me: Holder
    """This host, for no VM."""
    clock: Clock
    thread: Submits
    hint: Callable[[], None]
    """Makes the loop look. Returns at once."""
    uniform: Callable[[float, float], float] = random.uniform
    _memory: Memory = field(default_factory=Memory)
    _lock: threading.RLock = field(default_factory=threading.RLock)
    """Guards what is remembered. It is not held while a file is written."""
    _writing: threading.Lock = field(default_factory=threading.Lock)
    """Guards the claims on disk."""
    _stale: Stale = field(default_factory=Stale)
    _retry_at: dict[str, float] = field(default_factory=dict)
    """By VM: when to try again to tell the engine of a halt, or to give a slot back."""
    _resumed_at: dict[str, float] = field(default_factory=dict)
    """By VM that failed: when to ask again whether an operator has resumed its group."""
    _calling: set[str] = field(default_factory=set)
    """VMs of whose failure the engine is being told or asked."""
    _strays_at: float = 0.0
    """When to search for slots and halts that no claim of this host knows."""
    _is_searching: bool = False
    _away: Away | None = None
    _halted: dict[str, str] = field(default_factory=dict)

    def use(self, config: Config, store: Store, engine: Engine, me: Holder) -> None:
        """Use another configuration from now on. A call that is under way ends with the former engine."""
        self.engine.write_down()
        with self._lock:
            self.config, self.store, self.engine, self.me = config, store, engine, me
            for name in self._memory.turns.keys() - config.vms.keys():
                del self._memory.turns[name]
            self._strays_at = 0.0

    def _group(self, vm: VmConfig) -> str:
        """The VM's group. A VM that has halted its group stays in it until the halt is over."""
        claim = self.store.claim(vm.name)
        if claim is not None and claim.halt:
            return claim.group
        fleet = self.config.fleet
        return fleet.group_of(vm) if fleet is not None else ""

    def _enter(self, vm: str, group: str, stage: Stage) -> SlotTurn:
        """Have a VM be at a stage. How long it has waited goes on while it is denied and asks again."""
        former = self._memory.turns.get(vm)
        waits = {Stage.ASKING, Stage.DENIED}
        goes_on = former is not None and former.stage in waits and stage in waits
        since = former.since if former is not None and goes_on else self.clock.wall()
        turn = self._memory.turns[vm] = SlotTurn(group, stage, self.clock.monotonic(), since)
        if former is not None and goes_on:
            turn.reason, turn.detail = former.reason, former.detail
        return turn

    def _begin_to_return(self, name: str, claim: Claim) -> None:
        with self._lock:
            turn = self._memory.turns.get(name)
            if turn is not None and turn.stage in {Stage.ASKING, Stage.WORKING, Stage.RETURNING}:
                return
            self._enter(name, claim.group, Stage.RETURNING)
        self.thread.submit(partial(self._return, name, claim))

    def _holder(self, vm: str, host: str) -> Holder:
        return Holder(host, vm, self.me.machine)

    def _acquire(self, name: str, group: str, host: str, change: str) -> None:
        found = self.engine.acquire(group, self._holder(name, host), change)
        now = self.clock.monotonic()
        stale = self._stale.found(group, found, self._stale_seconds, now)
        for each in stale:
            if self.engine.expire(group, each) == Applied(1):
                _log.warning(
                    "took away a slot that nobody has given back for fleet.stale_seconds",
                    group=group,
                    holder=each.holder.name,
                )
        with self._lock:
            former = self._memory.turns.get(name)
            if former is not None:  # else a reload has removed the VM
                turn = self._enter(
                    name, group, Stage.GRANTED if isinstance(found, Granted) else Stage.DENIED
                )
                turn.order, turn.is_away = former.order, isinstance(found, Unavailable)
                turn.reason, turn.detail = denial(group, found)
                turn.until = now + (0.0 if stale else self.uniform(*(AWAY if turn.is_away else ASK_AGAIN)))
            self._note(group, found)
            if isinstance(found, Halted) and self._strays().is_stray(found.halt):
                self._strays_at = 0.0
        self.hint()

    def _return(self, name: str, claim: Claim) -> None:
        """Resume the group first, and give the slot back then: a crash between the two leaves a claim."""
        holder = self._holder(name, claim.host)
        found: Changed = self.engine.resume(claim.group, holder) if claim.halt else Applied(0)
        if not isinstance(found, Unavailable):
            found = self.engine.release(claim.group, holder)
        with self._lock:
            turn = self._memory.turns.get(name)
            if turn is not None and turn.stage is Stage.RETURNING:
                del self._memory.turns[name]
            self._after_call(name, claim.group, found)
            if claim.halt and not isinstance(found, Unavailable):
                self._halted.pop(claim.group, None)
        try:
            if not isinstance(found, Unavailable):
                with self._writing:
                    if self.store.claim(name) == claim:  # else something has failed on the VM since
                        self.store.record_claim(name, None)
        finally:
            self.hint()

    def _find_strays(self) -> None:
        try:
            with self._lock:
                strays = self._strays()
            groups = {self._group(vm) for vm in strays.config.vms.values()}
            with closing(strays.find(groups, self._writing)) as answers:
                for found in answers:
                    with self._lock:
                        self._note("", found)
                    if isinstance(found, Unavailable):
                        break  # each further call may take as long to fail; the search is made again soon
        finally:
            with self._lock:
                self._is_searching = False
            self.hint()

    def _strays(self) -> Strays:
        return Strays(self.config, self.store, self.engine, self.me, self.clock.wall)

    @property
    def _stale_seconds(self) -> float:
        return self.config.fleet.stale_seconds if self.config.fleet is not None else 0.0

    def _after_call(self, name: str, group: str, found: Changed | Halted | Group) -> None:
        """Note whether a call other than that for a slot succeeded, or when to try it again."""
        if isinstance(found, Unavailable | Halted):
            self._retry_at[name] = self.clock.monotonic() + self.uniform(*AWAY)
        else:
            self._retry_at.pop(name, None)
        self._note(group, found)

    def _note(self, group: str, found: Acquired | Changed | Group) -> None:
        """Note what an answer says about the engine and the group."""
        match found:
            case Unavailable(reason, hint):
                # The request may still arrive, after what was to undo it.
                self._strays_at = min(self._strays_at, self.clock.monotonic() + self.uniform(*AWAY))
                if self._away is None:
                    self._away = Away(reason, hint, self.clock.wall())
                return
            case Halted(halt):
                self._halted[group] = halt.text
            case Granted() | Full():
                self._halted.pop(group, None)
            case Group(name=name, halt=halt) if halt is not None:
                self._halted[name] = halt.text
            case Group(name=name):
                self._halted.pop(name, None)
        if not any(turn.stage is Stage.DENIED and turn.is_away for turn in self._memory.turns.values()):
            self._away = None
