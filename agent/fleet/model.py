# SPDX-License-Identifier: MIT
"""Slots, halts and groups of a fleet, what an engine answers, and what an engine can do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

from credferry.agent.digests import Mac

if TYPE_CHECKING:
    from collections.abc import Mapping

LIMIT_MAX: Final = 1000
"""The highest limit of a group, and the highest number of slots that are read."""
GROUPS_MAX: Final = 256
"""How many groups are listed."""
_PURPOSE: Final = b"credferry fleet holder"


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a slot: a VM of a host. ``vm`` is empty for an operator."""

    host: str
    vm: str
    machine: str
    """32 hex digits from `machine_of`. They tell two machines with the same host name apart."""

    @property
    def name(self) -> str:
        """Host and VM, for messages."""
        return f"{self.vm} on {self.host}" if self.vm else f"an operator on {self.host}"

    def is_twin_of(self, other: Holder) -> bool:
        """Whether another machine uses the same host name for a VM of the same name."""
        return (self.host, self.vm) == (other.host, other.vm) and self.machine != other.machine


def machine_of(machine_id: bytes) -> str:
    """What identifies a machine in the engine. The machine's ID itself stays on the host (machine-id(5))."""
    return Mac(machine_id.strip()).of(_PURPOSE).hex()[:32]


@dataclass(frozen=True, slots=True)
class Slot:
    """A slot that a VM holds. ``since``, in seconds since 1970 by the holder's clock, is for display."""

    number: int
    holder: Holder
    change: str
    since: float
    revision: int
    """The engine's revision in which this slot was taken: the same slot, taken again, has another one."""


@dataclass(frozen=True, slots=True)
class UnreadableSlot:
    """A slot whose key or content is not what credferry writes. It counts as held."""

    number: int | None
    """None if no slot has such a key."""
    revision: int


@dataclass(frozen=True, slots=True)
class Halt:
    """Why nothing in a group is restarted, and for which VM's failure."""

    why: str
    holder: Holder
    change: str
    since: float
    revision: int

    @property
    def text(self) -> str:
        """The halt in words."""
        return f"{self.holder.name}: {self.why}"


@dataclass(frozen=True, slots=True)
class UnreadableHalt:
    """A halt whose content is not what credferry writes. It halts the group as any other."""

    revision: int
    holder: None = None

    @property
    def text(self) -> str:
        """The halt in words."""
        return "a halt that cannot be read"


@dataclass(frozen=True, slots=True)
class Limit:
    """How many VMs of a group may be down at a time. ``revision`` is 0 if nobody has set it."""

    number: int
    revision: int


@dataclass(frozen=True, slots=True)
class BadLimit:
    """A limit that is not a number from 1 to `LIMIT_MAX`. Nobody gets a slot."""

    revision: int


@dataclass(frozen=True, slots=True)
class Group:
    """A group at one revision of the engine."""

    name: str
    limit: Limit | BadLimit
    held: tuple[Slot | UnreadableSlot, ...]
    halt: Halt | UnreadableHalt | None
    revision: int

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The slots that can be read."""
        return tuple(each for each in self.held if isinstance(each, Slot))


@dataclass(frozen=True, slots=True)
class Present:
    """A host whose agent has reported lately. It is for display: no decision depends on it."""

    host: str
    version: str
    vms: Mapping[str, int]
    """How many of its VMs in the group are in which state."""
    since: float
    """When it reported a change last, in seconds since 1970 by its own clock."""


@dataclass(frozen=True, slots=True)
class Granted:
    """The VM has this slot. ``again`` says that it had it already: an answer was lost, or the agent died."""

    slot: int | None
    """None if the engine does not number slots."""
    again: bool = False


@dataclass(frozen=True, slots=True)
class Full:
    """Others hold the slots."""

    held: tuple[Slot | UnreadableSlot, ...] = ()
    limit: int | None = None
    said: str = ""
    """What a FleetLock server gave as the reason, made harmless."""


@dataclass(frozen=True, slots=True)
class Halted:
    """The group is halted."""

    halt: Halt | UnreadableHalt


@dataclass(frozen=True, slots=True)
class Unavailable:
    """The engine did not answer, or its answer cannot be used. The call may have had its effect."""

    reason: str
    hint: str


@dataclass(frozen=True, slots=True)
class Unsupported:
    """The engine has no such call."""

    reason: str
    hint: str


@dataclass(frozen=True, slots=True)
class Applied:
    """The call had its effect, now or before. ``changed`` counts what this call changed."""

    changed: int = 1


@dataclass(frozen=True, slots=True)
class OfHost:
    """The slots of a host, or of one VM of it. ``vm`` is empty for all."""

    host: str
    vm: str = ""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """The slots that cannot be read."""


Acquired: TypeAlias = Granted | Full | Halted | Unavailable
Changed: TypeAlias = Applied | Unavailable | Unsupported


class Engine(Protocol):
    """What keeps the slots. No call raises because of the engine; each ends within a fixed time.

    A group or host of a wrong form raises ValueError: the configuration allows none.
    """

    def acquire(self, group: str, holder: Holder, change: str) -> Acquired:
        """Take a slot, or find that the VM has one. ``change`` is the random ID of the run, for display."""
        ...

    def release(self, group: str, holder: Holder) -> Applied | Unavailable:
        """Give back each slot of the VM. It is no error if the VM has none."""
        ...

    def halt(self, group: str, holder: Holder, change: str, why: str) -> Changed | Halted:
        """Halt the group. An earlier halt stays, and is returned."""
        ...

    def resume(self, group: str, holder: Holder | None = None) -> Changed:
        """End the halt. With a holder, end it only if it is this holder's."""
        ...

    def free(self, group: str, what: OfHost | Unreadable) -> Changed:
        """Take slots away from others, as an operator orders for a host that is dead."""
        ...

    def expire(self, group: str, slot: Slot) -> Changed:
        """Take away this slot of another host, if it was not taken again or written anew since."""
        ...

    def limit(self, group: str, number: int) -> Changed:
        """Set how many VMs of the group may be down at a time: 1 to `LIMIT_MAX`."""
        ...

    def groups(self) -> tuple[str, ...] | Unavailable | Unsupported:
        """The names of all groups of which anything is kept, in order; at most `GROUPS_MAX`."""
        ...

    def state(self, group: str) -> Group | Unavailable | Unsupported:
        """The group as it is now."""
        ...

    def write_down(self) -> None:
        """Write down what this host's next engine must know. It asks nobody and raises nothing."""
        ...
