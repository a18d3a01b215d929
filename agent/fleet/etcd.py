# SPDX-License-Identifier: MIT
"""The engine that keeps slots in etcd: compare-and-swap, no lease, and etcd's quorum for everything.

A call goes to the member that answered last, and to the next one if that fails. Each try begins with a read,
so a transaction whose answer was lost is found. Nothing depends on a clock.
"""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeVar

from credferry.agent.fleet import forms, keys, transactions
from credferry.agent.fleet.cluster import Known, Seen
from credferry.agent.fleet.deciding import Keep, Take, decide
from credferry.agent.fleet.model import (
    GROUPS_MAX,
    Applied,
    Full,
    Granted,
    Halted,
    OfHost,
    Slot,
    Unavailable,
    UnreadableSlot,
)
from credferry.agent.fleet.transport import EngineFault

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from credferry.agent.fleet.gateway import Member
    from credferry.agent.fleet.model import Acquired, Group, Holder, Unreadable
    from credferry.agent.fleet.transactions import Txn, TxnAnswer

_TRIES: Final = 8
"""How often a transaction is tried that another host's came before. After that, the caller waits."""
_T = TypeVar("_T")


@dataclass(slots=True)
class Etcd:
    """An `Engine`. Threads may call it at the same time; their calls take turns."""

    members: Sequence[Member]
    wall: Callable[[], float] = time.time
    pick: Callable[[Sequence[int]], int] = random.choice
    """Which free slot to try. By chance, two hosts seldom try the same one."""
    known: Known = field(default_factory=Known)
    """The cluster that the slots are in. An answer of another cluster, or with lost data, is none."""
    _last: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def acquire(self, group: str, holder: Holder, change: str) -> Acquired:
        """See `Engine`."""
        content = forms.write_slot(holder, change, self.wall())
        return self._ask(lambda member: self._acquire(member, group, holder, content))

    def release(self, group: str, holder: Holder) -> Applied | Unavailable:
        """See `Engine`."""
        return self._ask(lambda member: self._remove(member, group, lambda slot: slot.holder == holder))

    def halt(self, group: str, holder: Holder, change: str, why: str) -> Applied | Halted | Unavailable:
        """See `Engine`."""
        content = forms.write_halt(holder, change, self.wall(), why)

        def work(member: Member) -> Applied | Halted:
            found = self._write(member, transactions.halt(group, content))
            if found.succeeded:
                return Applied()
            halted = transactions.group(group, found).halt
            if halted is None:  # resumed at the same moment
                raise EngineFault("another host changes the group", "the agent retries")
            return Applied(0) if halted.holder == holder else Halted(halted)

        return self._ask(work)

    def resume(self, group: str, holder: Holder | None = None) -> Applied | Unavailable:
        """See `Engine`."""

        def work(member: Member) -> Applied:
            halted = self._read(member, group).halt
            if halted is None or (holder is not None and halted.holder != holder):
                return Applied(0)
            found = self._transact(member, transactions.resume(group, halted.revision))
            return Applied(int(found.succeeded))

        return self._ask(work)

    def free(self, group: str, what: OfHost | Unreadable) -> Applied | Unavailable:
        """See `Engine`."""
        if isinstance(what, OfHost):
            return self._ask(
                lambda member: self._remove(
                    member,
                    group,
                    lambda slot: slot.holder.host == what.host and what.vm in {"", slot.holder.vm},
                )
            )
        return self._ask(lambda member: self._remove_unreadable(member, group))

    def expire(self, group: str, slot: Slot) -> Applied | Unavailable:
        """See `Engine`."""
        txn = transactions.give_back(group, slot.number, slot.revision)
        return self._ask(lambda member: Applied(int(self._write(member, txn).succeeded)))

    def limit(self, group: str, number: int) -> Applied | Unavailable:
        """See `Engine`."""
        txn = transactions.set_limit(group, number)
        return self._ask(lambda member: Applied(int(self._write(member, txn).succeeded)))

    def groups(self) -> tuple[str, ...] | Unavailable:
        """See `Engine`."""
        return self._ask(self._groups)

    def state(self, group: str) -> Group | Unavailable:
        """See `Engine`."""
        keys.check_group(group)
        return self._ask(lambda member: self._read(member, group))

    def write_down(self) -> None:
        """See `Engine`."""
        self.known.write_down()

    def close(self) -> None:
        """Close all connections."""
        for member in self.members:
            member.close()

    def _acquire(self, member: Member, name: str, holder: Holder, content: bytes) -> Acquired:
        group = self._read(member, name)
        for _ in range(_TRIES):
            decision = decide(group, holder, self.pick)
            match decision:
                case Take(number):
                    txn = transactions.take(group, number, content)
                case Keep(number, revision):
                    txn = transactions.keep(group, number, revision, content)
                case refused:
                    return refused
            found = self._transact(member, txn)
            if found.succeeded:
                self.known.keep()  # while the slot is used, an etcd that has lost it must be found out
                return Granted(number, again=isinstance(decision, Keep))
            group = transactions.group(name, found)
        return Full(group.held, getattr(group.limit, "number", None), "many hosts ask at the same time")

    def _remove(self, member: Member, name: str, is_wanted: Callable[[Slot], bool]) -> Applied:
        changed = 0
        for slot in filter(is_wanted, self._read(member, name).slots):
            txn = transactions.give_back(name, slot.number, slot.revision)
            changed += self._transact(member, txn).succeeded
        return Applied(changed)

    def _remove_unreadable(self, member: Member, name: str) -> Applied:
        found = self._transact(member, transactions.read(name))
        changed = 0
        for pair, held in zip(
            transactions.slot_pairs(found), transactions.group(name, found).held, strict=True
        ):
            if isinstance(held, UnreadableSlot):
                txn = transactions.remove_unreadable(name, pair.key, pair.mod_revision)
                changed += self._transact(member, txn).succeeded
        return Applied(changed)

    def _groups(self, member: Member) -> tuple[str, ...]:
        """One request for each group: a group may have any number of keys."""
        found: list[str] = []
        start = keys.TOP.encode()
        for _ in range(2 * GROUPS_MAX):  # keys of others are passed over, too
            key = transactions.key_of(self._transact(member, transactions.first_key(start)), start)
            if key is None or len(found) == GROUPS_MAX:
                break
            found += filter(None, [keys.group_of(key)])
            start = keys.after(key)
        return tuple(found)

    def _read(self, member: Member, name: str) -> Group:
        return transactions.group(name, self._transact(member, transactions.read(name)))

    def _write(self, member: Member, txn: Txn) -> TxnAnswer:
        """Make a transaction that reads nothing first, unless this may be another etcd."""
        if not self.known.is_sure:
            self._transact(member, transactions.first_key(keys.TOP.encode()))
        return self._transact(member, txn)

    def _transact(self, member: Member, txn: Txn) -> TxnAnswer:
        found = member.transaction(txn)
        self.known.check(Seen(found.header.cluster_id, found.header.revision))
        return found

    def _ask(self, work: Callable[[Member], _T]) -> _T | Unavailable:
        faults: list[tuple[str, EngineFault]] = []
        with self._lock:
            for number in range(len(self.members)):
                at = (self._last + number) % len(self.members)
                member = self.members[at]
                try:
                    result = work(member)
                except EngineFault as error:
                    self.known.is_sure = False
                    faults.append((member.url, error))
                    continue
                except transactions.AnswerError as error:
                    self.known.is_sure = False  # the next member may be of another etcd
                    faults.append((member.url, EngineFault(str(error), "check that the URL is etcd's")))
                    continue
                self._last = at
                self.known.keep_up()
                return result
        reasons = "; ".join(f"{url}: {fault.reason}" for url, fault in faults)
        return Unavailable(reasons, faults[0][1].hint)
