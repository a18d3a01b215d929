# SPDX-License-Identifier: MIT
"""Takes a slot of the fleet before a VM's restart or push, gives it back afterwards, halts after a failure.

A claim is on disk before the engine is asked, and until it has taken the slot back. So no slot is forgotten
in a crash, and each step may be repeated. Only a host with ``[fleet]`` loads this module.

One job: the order of claim, call, and use of a slot.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from credferry.agent.rollout.fleet_halts import FleetHalts
from credferry.agent.rollout.fleet_memory import Stage
from credferry.agent.rollout.slot_need import has_failed, needed_for
from credferry.agent.rollout.slots import (
    Asking,
    AwaitedSlot,
    Awaiting,
    Denied,
    FleetView,
    Free,
    HeldSlot,
    SlotAnswer,
)
from credferry.agent.store.locks import rollout_lock
from credferry.agent.store.records import Claim, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from credferry.agent.config.model import VmConfig
    from credferry.agent.reconcile.decision import Decision
    from credferry.agent.reconcile.observed import Observed
    from credferry.agent.reconcile.observer import Look

_STRAYS_SECONDS: Final = 3600.0


@dataclass(slots=True)
class FleetSlots(FleetHalts):
    """`Slots` of a fleet, for the whole run of an agent."""

    def left(self, vm: VmConfig) -> Awaiting | None:
        """See `Slots`."""
        limits = self.config.rollout
        # A VM that may have a slot waits for no other one, which may wait for just that slot.
        width = math.inf if self.store.claim(vm.name) is not None else limits.concurrency
        with self._lock:
            return self._memory.left(
                vm.name, self._group(vm), self.clock.monotonic(), width, limits.slot_seconds
            )

    def claim(self, vm: VmConfig, change: str) -> bool:
        """See `Slots`."""
        group = self._group(vm)
        with self._lock:
            if self._begins(vm.name, group):
                return True
            if self.left(vm) is not None:
                return False
            self._enter(vm.name, group, Stage.ASKING)
        self._ask(vm.name, group, change)
        return False

    def ask_once(self, vm: VmConfig, change: str) -> SlotAnswer:
        """See `Slots`."""
        group = self._group(vm)
        with self._lock:
            if self._begins(vm.name, group):
                return Free()
            if self.is_asking(vm.name):
                return Asking()
            turn = self._memory.turns.get(vm.name)
            if turn is not None and turn.stage is Stage.DENIED and turn.order == change:
                return Denied(turn.reason, turn.detail)
            self._enter(vm.name, group, Stage.ASKING).order = change
        self._ask(vm.name, group, change)
        return Asking()

    def _begins(self, vm: str, group: str) -> bool:
        """Whether a VM has a slot that was granted a moment ago. The caller then begins to use it."""
        if not self._memory.has_fresh(vm, group, self.clock.monotonic()):
            return False
        self._enter(vm, group, Stage.WORKING)
        return True

    def is_asking(self, vm: str) -> bool:
        """See `Slots`."""
        with self._lock:
            turn = self._memory.turns.get(vm)
            return turn is not None and turn.stage in {Stage.ASKING, Stage.RETURNING}

    def ended(self, vm: str) -> None:
        """See `Slots`."""
        with self._lock:
            turn = self._memory.turns.get(vm)
            if turn is not None and turn.stage is Stage.WORKING:
                self._enter(vm, turn.group, Stage.HAD)

    def settle(self, look: Look, is_ordered: Callable[[str], bool]) -> float:
        """See `Slots`."""
        self.thread.raise_error()
        now = self.clock.monotonic()
        with self._lock:
            is_due = now >= self._strays_at and not self._is_searching
            if is_due:
                self._strays_at, self._is_searching = now + _STRAYS_SECONDS, True
            # The end of a search makes the loop look again.
            lefts = [math.inf if self._is_searching else self._strays_at - now]
        if is_due:
            self.thread.submit(self._find_strays)
        for decision, observed in zip(look.decisions, look.observed, strict=True):
            name = decision.vm.name
            claim = self.store.claim(name)
            with self._lock:
                turn = self._memory.turns.get(name)
            if claim is None and turn is not None and turn.stage in {Stage.DENIED, Stage.GRANTED, Stage.HAD}:
                claim = Claim(turn.group, self.me.host)  # its file is gone
            if claim is not None:
                lefts.append(self._settle(decision, observed, claim, is_ordered))
            if decision.awaits_slot:
                lefts.append(self._ask_again(decision.vm, observed))
        return min(lefts)

    def view(self) -> FleetView:
        """See `Slots`."""
        held, awaited = [], []
        with self._lock:
            turns = dict(self._memory.turns)
            away, halted = self._away, dict(self._halted)
        for name in self.config.vms:
            claim, turn = self.store.claim(name), turns.get(name)
            if claim is not None and not (turn is not None and turn.stage is Stage.DENIED):
                held.append(HeldSlot(name, claim.group, claim.since))
        for name, turn in turns.items():
            if turn.stage is Stage.DENIED:
                awaited.append(AwaitedSlot(name, turn.group, turn.since, turn.reason, turn.detail))
        return FleetView(tuple(held), tuple(awaited), away, halted)

    def _ask_again(self, vm: VmConfig, now: Observed) -> float:
        """Ask again for a VM that was denied a slot, if it is time. Returns the seconds until then."""
        moment = self.clock.monotonic()
        with self._lock:
            turn = self._memory.turns.get(vm.name)
            if turn is None or turn.stage is not Stage.DENIED or turn.group != self._group(vm):
                return math.inf
            if turn.until > moment:
                return turn.until - moment
            # An order that has asked before takes this answer for its own: it does not ask once more.
            self._enter(vm.name, turn.group, Stage.ASKING).order = turn.order
        self._ask(vm.name, turn.group, now.sealed.run if now.sealed is not None else "")
        return math.inf

    def _settle(
        self, decision: Decision, now: Observed, claim: Claim, is_ordered: Callable[[str], bool]
    ) -> float:
        """Do for one VM what is owed to the fleet. Returns the seconds until it must be looked at again."""
        name, moment = now.vm.name, self.clock.monotonic()
        with self._lock:
            turn = self._memory.turns.get(name)
        is_unused = turn is not None and turn.stage in {Stage.DENIED, Stage.GRANTED}
        canary_seconds = 0.0 if is_unused else self.config.rollout.canary_seconds
        needed = needed_for(decision, now, claim, canary_seconds, now.ran_for(self.clock.boot()))
        if needed > 0 and claim.halt and not claim.is_told:
            return self._tell(name)
        if has_failed(now.attempt, claim):
            # An operator may have ended the halt. A VM that is up again then needs no slot any more.
            is_up = now.unit is not None and (now.unit.is_active or now.unit.is_stopped)
            is_halter = bool(claim.halt) and is_up and not decision.needs_work
            return self._look_for_resume(name) if is_halter else math.inf
        wait = self._retry_at.get(name, 0.0) - moment
        if needed > 0 or wait > 0:
            return max(needed, wait)
        # A worker may have begun since the look, or is yet to begin with an order.
        with self.store.lock(rollout_lock(name), wait=False) as had:
            if had and self._is_for_order(name) and is_ordered(name):
                return math.inf
            attempt = self.store.attempt(name)
            # A look leaves out what is recorded of a halt once its cause is over.
            is_halted = attempt is not None and attempt.outcome is Outcome.HALTED
            if had and (is_halted or attempt == now.attempt):
                self._begin_to_return(name, claim)
        return math.inf

    def _is_for_order(self, name: str) -> bool:
        """Whether an order has asked for what the VM has got, and has not used it yet."""
        with self._lock:
            turn = self._memory.turns.get(name)
            return turn is not None and bool(turn.order)

    def _ask(self, name: str, group: str, change: str) -> None:
        """Write the claim, and have the engine asked. Raises `StoreError`."""
        try:
            with self._writing:
                claim = self.store.claim(name)
                if claim is None:
                    self.store.record_claim(name, Claim(group, self.me.host, change, self.clock.wall()))
        except BaseException:
            with self._lock:
                self._memory.turns.pop(name, None)
            raise
        # What a reload has renamed is given back first. But a halt, and its slot, stay until the VM is well.
        host = claim.host if claim is not None and claim.halt else self.me.host
        if claim is not None and (claim.group, claim.host) != (group, host):
            with self._lock:
                self._enter(name, group, Stage.RETURNING)
            self.thread.submit(partial(self._return, name, claim))
            return
        self.thread.submit(partial(self._acquire, name, group, host, change))
