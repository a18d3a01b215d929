# SPDX-License-Identifier: MIT
"""Metrics about the age and the end of VMs' secrets: by VM, without the name of a credential."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Gauge

from credferry.agent.reconcile.aging import ends, overdue, since

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from credferry.agent.config.model import VmConfig
    from credferry.agent.reconcile.observed import Observed
    from credferry.agent.store.generations import Store


@dataclass(frozen=True, slots=True)
class _Secrets:
    """What a look has shown of a VM's secrets."""

    vm: VmConfig
    since: Mapping[str, float]
    ends: Mapping[str, float]


@dataclass(slots=True)
class SecretMetrics:
    """Remembers the last look. `fill` computes what depends on the time."""

    registry: CollectorRegistry
    _seen: list[_Secrets] = field(default_factory=list)
    _gauges: tuple[Gauge, Gauge, Gauge] = field(init=False)

    def __post_init__(self) -> None:
        """Make the gauges."""
        texts = {
            "credferry_secret_expires_timestamp_seconds": (
                "When the first of a VM's secrets ends by its own words (certificate, JSON web token)."
            ),
            "credferry_secret_age_seconds": "The age of the oldest of a VM's secrets, in seconds.",
            "credferry_secrets_overdue": "How many of a VM's secrets are older than their max_age_days.",
        }
        one, two, three = (
            Gauge(name, text, ("vm",), registry=self.registry) for name, text in texts.items()
        )
        self._gauges = one, two, three

    def note(self, observed: Iterable[Observed], store: Store) -> None:
        """Note what a look has shown."""
        self._seen = [_Secrets(each.vm, since(each, store), ends(each)) for each in observed]

    def fill(self, now: float) -> None:
        """Set the gauges. ``now`` is in seconds since 1970."""
        expires, age, late = self._gauges
        for gauge in self._gauges:
            gauge.clear()
        for each in self._seen:
            name = each.vm.name
            if each.ends:
                expires.labels(name).set(min(each.ends.values()))
            if each.since:
                age.labels(name).set(max(0.0, now - min(each.since.values())))
            late.labels(name).set(len(overdue(each.vm, each.since, now)))
