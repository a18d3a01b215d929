# SPDX-License-Identifier: MIT
"""Tells the fleet, for display, in which states this host's VMs are. Nothing waits for it or depends on it.

A thread of its own does it, once a minute, with connections of its own: a slow engine holds up no slot. It
logs nothing: that the engine is away is reported where slots are asked for.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Final

from credferry.agent import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from credferry.agent.config.fleet import FleetConfig
    from credferry.agent.config.model import Config
    from credferry.agent.fleet.presence import Presence
    from credferry.agent.reconcile.observer import Look

PERIOD_SECONDS: Final = 60.0


class Reports:
    """Reports of one agent. Only the loop calls `use` and `note`."""

    def __init__(self, wall: Callable[[], float] = time.time) -> None:
        self._wall = wall
        self._lock = threading.Lock()
        self._fleet: tuple[Presence, str, FleetConfig] | None = None
        self._vms: Mapping[str, Mapping[str, int]] | None = None
        self._thread: threading.Thread | None = None

    def use(self, config: Config, presence: Presence | None, host: str) -> None:
        """Report to this fleet from now on; to none for None."""
        fleet = config.fleet
        with self._lock:
            self._fleet = None if presence is None or fleet is None else (presence, host, fleet)

    def note(self, look: Look) -> None:
        """Note the states of all VMs. The first note is reported at once."""
        with self._lock:
            if self._fleet is None:
                return
            fleet = self._fleet[2]
            counts: dict[str, Counter[str]] = {fleet.group: Counter()}
            for each in look.decisions:
                counts.setdefault(fleet.group_of(each.vm), Counter())[each.state.value] += 1
            self._vms = counts
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="reports", daemon=True)
            self._thread.start()

    def report(self) -> None:
        """Report the last note now."""
        with self._lock:
            fleet, vms = self._fleet, self._vms
        if fleet is not None and vms is not None:
            presence, host, _ = fleet
            presence.tell(host, __version__, vms, self._wall())

    def _run(self) -> None:
        while True:
            self.report()
            time.sleep(PERIOD_SECONDS)
