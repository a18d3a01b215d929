# SPDX-License-Identifier: MIT
"""The interface through which the daemon publishes its state while it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

    from credferry.agent.audit.writer import Fact
    from credferry.agent.reconcile.status import VmStatus
    from credferry.agent.rollout.orders import Orders


class Front(Protocol):
    """No method raises anything. All but `settle` and `stop` return at once. Any thread may call them."""

    def start(self) -> None:
        """Start publishing."""

    def settle(self) -> None:
        """Wait until the agent can be asked over the bus, or a first attempt failed; at most 2 seconds."""

    def stop(self) -> None:
        """Stop publishing."""

    def show(self, standings: Iterable[VmStatus]) -> None:
        """Publish the status of all VMs."""

    def hear(self, fact: Fact) -> None:
        """Pass on a fact that was recorded."""


class NoFront:
    """Publishes nothing."""

    def start(self) -> None:
        """See `Front`."""

    def settle(self) -> None:
        """See `Front`."""

    def stop(self) -> None:
        """See `Front`."""

    def show(self, standings: Iterable[VmStatus]) -> None:
        """See `Front`."""

    def hear(self, fact: Fact) -> None:
        """See `Front`."""


def no_front(_orders: Orders) -> Front:
    """A front for an agent that is not on the bus."""
    return NoFront()
