# SPDX-License-Identifier: MIT
"""Slots of a fleet as the rollout needs them, and what is shown of them. A host without a fleet needs none.

This module loads nothing of `agent.fleet`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from credferry.agent.config.model import VmConfig
    from credferry.agent.reconcile.observer import Look


@dataclass(frozen=True, slots=True)
class HeldSlot:
    """A VM of this host that has a slot, or has asked for one whose answer was lost."""

    vm: str
    group: str
    since: float
    """When the agent recorded it, in seconds since 1970."""


@dataclass(frozen=True, slots=True)
class AwaitedSlot:
    """A VM of this host whose restart or push is due, and waits for a slot alone."""

    vm: str
    group: str
    since: float
    """Since when it has waited, in seconds since 1970."""
    reason: str
    """Why it waits, in words, such as ``until group web has a free slot``."""
    detail: str
    """What may change while it waits: who holds the slots. May be empty."""


@dataclass(frozen=True, slots=True)
class Away:
    """The fleet's engine, etcd or a FleetLock server, does not answer as it should."""

    reason: str
    hint: str
    since: float
    """When the agent noticed it, in seconds since 1970."""


@dataclass(frozen=True, slots=True)
class FleetView:
    """What this agent knows of its fleet at one moment, from its memory and its records. It asks nobody."""

    held: tuple[HeldSlot, ...] = ()
    awaited: tuple[AwaitedSlot, ...] = ()
    away: Away | None = None
    """None while the engine answers, or while nothing has been asked."""
    halted: Mapping[str, str] = field(default_factory=dict)
    """By group: why it is halted, as the engine last said to this agent."""


@dataclass(frozen=True, slots=True)
class Free:
    """The VM may be restarted, or get its push, as far as the fleet is concerned."""


@dataclass(frozen=True, slots=True)
class Asking:
    """The engine has been asked and has not answered yet. The loop gets a hint when it has."""


@dataclass(frozen=True, slots=True)
class Denied:
    """The VM gets no slot now."""

    reason: str
    detail: str
    """Who holds the slots, or what to do. May be empty."""


SlotAnswer: TypeAlias = Free | Asking | Denied


@dataclass(frozen=True, slots=True)
class Awaiting:
    """Why a VM that is due waits for its fleet."""

    reason: str
    """Does not change while the wait lasts."""
    detail: str
    seconds: float
    """After which to look again."""
    is_turn: bool
    """Whether it only waits for an answer, or for another VM of this host: it is shown as due."""


class Slots(Protocol):
    """Slots for the VMs of this host. No call waits for the network. Threads may call it at any time."""

    def left(self, vm: VmConfig) -> Awaiting | None:
        """What a VM that is up and due waits for; None if a worker may `claim` for it. Changes nothing."""
        ...

    def claim(self, vm: VmConfig, change: str) -> bool:
        """Whether the VM has a slot for this change. If it has none, the engine is asked for one.

        The caller holds the VM's rollout lock, and restarts the VM or pushes to it right after True. Raises
        `StoreError`.
        """
        ...

    def ask_once(self, vm: VmConfig, change: str) -> SlotAnswer:
        """As `claim`, for an operator's order, which does not wait: it is carried out or refused.

        Raises `StoreError`.
        """
        ...

    def is_asking(self, vm: str) -> bool:
        """Whether an answer of the engine for a VM is on its way."""
        ...

    def ended(self, vm: str) -> None:
        """Note that a worker has ended its work on a VM, for which `claim` or `ask_once` said yes."""
        ...

    def failed(self, vm: VmConfig, change: str, reason: str) -> None:
        """Record that a change has failed on a VM, before its attempt says so: the group is to be halted.

        ``reason`` goes to other hosts: it names a generation, never a unit's output. Raises `StoreError`.
        """
        ...

    def settle(self, look: Look, is_ordered: Callable[[str], bool]) -> float:
        """Give back what no VM needs any more, and halt the groups of VMs that failed.

        ``is_ordered`` says whether an operator's order on a VM is pending: it finds the answer that it has
        asked for, however late its worker begins. Call this again once the order has ended. Returns the
        seconds until it must be called again. Raises `StoreError`, and what its thread could not handle.
        """
        ...

    def view(self) -> FleetView:
        """What is known of the fleet now."""
        ...


NO_FLEET: Final = FleetView()


class NoSlots:
    """For a host without a fleet: every VM is free."""

    def left(self, vm: VmConfig) -> Awaiting | None:
        """See `Slots`."""

    def claim(self, vm: VmConfig, change: str) -> bool:  # noqa: ARG002 (as the protocol says)
        """See `Slots`."""
        return True

    def ask_once(self, vm: VmConfig, change: str) -> SlotAnswer:  # noqa: ARG002 (as the protocol says)
        """See `Slots`."""
        return Free()

    def is_asking(self, vm: str) -> bool:  # noqa: ARG002 (as the protocol says)
        """See `Slots`."""
        return False

    def ended(self, vm: str) -> None:
        """See `Slots`."""

    def failed(self, vm: VmConfig, change: str, reason: str) -> None:
        """See `Slots`."""

    def settle(self, look: Look, is_ordered: Callable[[str], bool]) -> float:  # noqa: ARG002 (as above)
        """See `Slots`."""
        return math.inf

    def view(self) -> FleetView:
        """See `Slots`."""
        return NO_FLEET
