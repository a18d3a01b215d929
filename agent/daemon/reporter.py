# SPDX-License-Identifier: MIT
"""Reports a lasting condition once when it begins, and summarises it when it ends."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from credferry.agent.audit.events import Event
from credferry.agent.log import Conditions
from credferry.agent.reconcile.decision import Decision, State

if TYPE_CHECKING:
    from collections.abc import Iterable

    from credferry.agent.audit.writer import Audit

_REFUSED = {State.REFUSED, State.NO_UNIT}


@dataclass(slots=True)
class Reporter:
    """Reports once that a VM is refused or waits, and again only when the reasons change."""

    audit: Audit
    _conditions: Conditions = field(default_factory=Conditions)

    def report(self, decisions: Iterable[Decision]) -> None:
        """Write what is new in these decisions to the audit. Raises `StoreError`."""
        for decision in decisions:
            if decision.look_again:  # a state that ends within a second is not reported
                continue
            self._refused(decision)
            self._waits(decision)

    def _refused(self, decision: Decision) -> None:
        vm, now = decision.vm, time.monotonic()
        key = f"refused {vm.name}"
        if decision.state in _REFUSED and decision.reasons:
            reasons = "; ".join(decision.reasons)
            if self._conditions.begin(key, reasons, now):
                self._tell(Event.REFUSED, f"{vm.name}: keeps its previous secrets: {reasons}", decision)
        elif counted := self._conditions.end(key, now):
            self._tell(Event.REFUSAL_OVER, f"{vm.name}: no longer refused, after {counted}", decision)

    def _waits(self, decision: Decision) -> None:
        vm, now = decision.vm, time.monotonic()
        key = f"waits {vm.name}"
        if decision.state is not State.WAITING:
            self._conditions.end(key, now)
        elif self._conditions.begin(key, "; ".join(decision.reasons), now):
            self._tell(
                Event.WAITING, f"{vm.name}: its rotation waits {'; '.join(decision.reasons)}", decision
            )

    def _tell(self, event: Event, message: str, decision: Decision) -> None:
        self.audit.record(event, message, vm=decision.vm.name, unit=decision.vm.unit)
