# SPDX-License-Identifier: MIT
"""Finds slots and halts of this host that no claim of it knows, and claims of VMs that are gone.

A request that the network delivers late can leave such a slot or halt: it costs time, never safety. So what
belongs to a VM whose records cannot be read stays until they can be, or until an operator takes it away.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from credferry.agent.errors import StoreError
from credferry.agent.fleet.model import Group, Halt, Holder, Unavailable
from credferry.agent.messages import Messages
from credferry.agent.rollout.slot_need import has_failed
from credferry.agent.store.locks import rollout_lock
from credferry.agent.store.records import Claim, Outcome

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Generator, Iterable, Iterator
    from typing import TypeGuard

    from credferry.agent.config.model import Config
    from credferry.agent.fleet.model import Changed, Engine, Slot, UnreadableHalt
    from credferry.agent.store.generations import Store
    from credferry.agent.store.records import Attempt

_log = Messages()
_NEEDS = {Outcome.RESTARTING, Outcome.FAILED, Outcome.ROLLED_BACK}


class _Records(NamedTuple):
    claim: Claim | None
    attempt: Attempt | None


@dataclass(frozen=True, slots=True)
class Strays:
    """One search. It runs in the thread that also asks for slots, so none is asked for meanwhile."""

    config: Config
    store: Store
    engine: Engine
    me: Holder
    wall: Callable[[], float]

    def find(self, groups: Iterable[str], writing: threading.Lock) -> Generator[Changed | Group, None, None]:
        """Give back what is not needed, and yield each answer of the engine. Raises `StoreError`."""
        claims = {name: claim for name in self.store.claimed() if (claim := self.store.claim(name))}
        for name, claim in claims.items():
            if name not in self.config.vms:
                with self.store.lock(rollout_lock(name), wait=False) as had:
                    if had:  # else it is being restarted, as the former configuration says
                        yield from self._give_back(name, claim, writing)
        every = sorted({*groups, *(each.group for each in claims.values())})
        # The caller ends a search with its first failure: a group that always fails must hide no other.
        for group in random.sample(every, len(every)):
            found = self.engine.state(group)
            yield found
            if isinstance(found, Group):
                for slot in found.slots:
                    if self._is_mine(slot.holder):
                        yield from self._look_at(slot, group, writing)
                yield from self._end_halt(found, writing)

    def _is_mine(self, holder: Holder) -> bool:
        return (holder.host, holder.machine) == (self.me.host, self.me.machine)

    def _give_back(self, name: str, claim: Claim, writing: threading.Lock) -> Iterator[Changed]:
        """Of a VM that no configuration names any more. A halt for it stays until an operator ends it."""
        yield (found := self.engine.release(claim.group, Holder(claim.host, name, self.me.machine)))
        if not isinstance(found, Unavailable):
            with writing:
                self.store.record_claim(name, None)
            _log.warning("gave back the slot of a VM that is no longer configured", vm=name)

    def _look_at(self, slot: Slot, group: str, writing: threading.Lock) -> Iterator[Changed]:
        """A slot that is held in the name of a VM of this host."""
        vm = slot.holder.vm
        with writing:
            records = self._records(vm)
            if records is None or records.claim is not None:
                return
            attempt = records.attempt if vm in self.config.vms else None
            if attempt is not None and attempt.outcome in _NEEDS:  # its claim was lost
                self.store.record_claim(vm, Claim(group, self.me.host, attempt.run, self.wall()))
                return
        yield (found := self.engine.release(group, slot.holder))
        if not isinstance(found, Unavailable):
            _log.warning("gave back a slot that no VM of this host needs", vm=vm, group=group)

    def _records(self, vm: str) -> _Records | None:
        """What is recorded of a VM; None if that cannot be read, and nothing may be taken back for it."""
        try:
            return _Records(*self.store.claim_and_attempt(vm))
        except StoreError:
            return None

    def is_stray(self, halt: Halt | UnreadableHalt | None) -> TypeGuard[Halt]:
        """Whether a halt is in the name of a VM of this host, and no claim of it knows the halt."""
        if not isinstance(halt, Halt) or not self._is_mine(halt.holder):
            return False
        vm = halt.holder.vm
        records = self._records(vm) if vm in self.config.vms else None
        return records is not None and (records.claim is None or not records.claim.halt)

    def _end_halt(self, group: Group, writing: threading.Lock) -> Iterator[Changed]:
        """Resume a group for which nothing on this host has failed, or record its halt in a claim."""
        halt = group.halt
        if not self.is_stray(halt):
            return
        vm = halt.holder.vm
        records = self._records(vm)
        if records is None:
            return
        attempt = records.attempt
        if attempt is not None and has_failed(attempt, records.claim):
            with writing:  # its claim was lost
                self.store.record_claim(
                    vm, Claim(group.name, self.me.host, attempt.run, self.wall(), halt.why, is_told=True)
                )
            return
        yield (found := self.engine.resume(group.name, halt.holder))
        if not isinstance(found, Unavailable):
            _log.warning("ended a halt that no VM of this host needs", vm=vm, group=group.name)
