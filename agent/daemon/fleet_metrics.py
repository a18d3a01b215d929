# SPDX-License-Identifier: MIT
"""Metrics about a fleet: slots that this host holds, VMs that wait for one, and halted groups."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Gauge

if TYPE_CHECKING:
    from credferry.agent.rollout.slots import FleetView

_TEXTS = {
    "credferry_fleet_slots_held": "Slots of a group of the fleet that VMs of this host hold.",
    "credferry_fleet_vms_waiting": "VMs of this host that wait for a slot of a group.",
    "credferry_fleet_waiting_seconds": "How long the VM of this host that has waited longest has waited.",
    "credferry_fleet_halted": "1 for each halted group, as the agent was last told.",
}


@dataclass(slots=True)
class FleetMetrics:
    """Remembers the last view. A host without a fleet has none of these."""

    registry: CollectorRegistry
    view: FleetView | None = None
    _gauges: tuple[Gauge, Gauge, Gauge, Gauge] | None = None
    _groups: set[str] = field(default_factory=set)
    """Groups that had a value: they keep one, which is 0 later."""

    def note(self, view: FleetView) -> None:
        """Note what is known of the fleet now."""
        self.view = view
        if self._gauges is None:
            one, two, three, four = (
                Gauge(name, text, ("group",), registry=self.registry) for name, text in _TEXTS.items()
            )
            self._gauges = one, two, three, four

    @property
    def key(self) -> object:
        """A value that differs if anything but the passing of time has changed."""
        if self.view is None:
            return None
        return self.view.held, self.view.awaited, frozenset(self.view.halted)

    def fill(self, now: float) -> None:
        """Set the gauges. ``now`` is in seconds since 1970."""
        if self.view is None or self._gauges is None:
            return
        view = self.view
        held = Counter(each.group for each in view.held)
        waiting = Counter(each.group for each in view.awaited)
        since: dict[str, float] = {}
        for each in view.awaited:
            since[each.group] = min(each.since, since.get(each.group, each.since))
        self._groups |= {*held, *waiting, *view.halted}
        for group in self._groups:
            values = (
                held[group],
                waiting[group],
                max(0.0, now - since.get(group, now)),
                group in view.halted,
            )
            for gauge, value in zip(self._gauges, values, strict=True):
                gauge.labels(group).set(value)
