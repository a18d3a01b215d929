# SPDX-License-Identifier: MIT
"""What the daemon shows itself by to others while it runs; by what, it need not know."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

    from credferry.agent.audit.writer import Fact
    from credferry.agent.reconcile.status import Standing


class Front(Protocol):
    """Every method returns at once and raises nothing; any thread may call them."""

    def start(self) -> None:
        """Begin to be there for others."""

    def stop(self) -> None:
        """Be there no more."""

    def show(self, standings: Iterable[Standing]) -> None:
        """Show where all VMs stand."""

    def hear(self, fact: Fact) -> None:
        """Pass on a fact that was recorded."""


class NoFront:
    """A daemon that nobody can ask."""

    def start(self) -> None:
        """See `Front`."""

    def stop(self) -> None:
        """See `Front`."""

    def show(self, standings: Iterable[Standing]) -> None:
        """See `Front`."""

    def hear(self, fact: Fact) -> None:
        """See `Front`."""
