# SPDX-License-Identifier: MIT
"""Metrics for Prometheus: states of VMs, what the agent has done, and what is unavailable.

They contain names of VMs. They never contain a fingerprint, a value, a value's length, or the name of a
credential. The import of prometheus-client takes more time and memory than all others, so the daemon loads
this module only if the configuration asks for metrics.
"""

from __future__ import annotations

import platform
import threading
import time
from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

from credferry.agent import __version__
from credferry.agent.audit.events import Event
from credferry.agent.daemon.fleet_metrics import FleetMetrics
from credferry.agent.daemon.secret_metrics import SecretMetrics
from credferry.agent.reconcile.decision import State
from credferry.agent.reconcile.desired import Desired

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from credferry.agent.audit.writer import Fact
    from credferry.agent.reconcile.decision import Decision
    from credferry.agent.reconcile.observed import Observed
    from credferry.agent.reconcile.observer import Look
    from credferry.agent.rollout.slots import FleetView
    from credferry.agent.store.generations import Store

# Otherwise each counter has a second series, with the time of its first use. Nothing here uses that.
disable_created_metrics()  # type: ignore[no-untyped-call]  # prometheus-client gives it no types

BUCKETS = (0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0)
"""Upper bounds in seconds. VMs that waited for a window, or were held, may exceed the last one."""
LACKS = ("source", "bus", "store", "key", "tpm")
"""What may be unavailable for a time, by the keys of the agent's `Conditions`."""
PUSH_RESULTS = {Event.PUSHED: "done", Event.PUSH_FAILED: "failed"}
RESULTS = {
    Event.RESTARTED: "done",
    Event.RESTART_FAILED: "failed",
    Event.ROLLED_BACK: "rolled back",
    Event.ROLLBACK_FAILED: "rollback failed",
}

_BEHIND = {
    State.RESTART_DUE,
    State.PUSH_DUE,
    State.REFUSED,
    State.FAILED,
    State.HELD,
    State.APPROVAL,
    State.ROLLED_BACK,
    State.IGNORED,
    State.HALTED,
    State.WAITING,
}
"""The VM does not run, or cannot run, what is published. A VM that is changing counts as it did before."""


class Metrics:
    """Values since this object was made. Any thread may call `hear`; only the loop calls the others."""

    def __init__(
        self, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._wall, self._monotonic = wall, monotonic
        self._states: dict[str, State] = {}
        self._since: dict[str, float | None] = {}
        """Since when each VM has been behind, in wall-clock time; None if it is not behind."""
        self._facts = 0
        self._seen: dict[str, tuple[str, float]] = {}
        """The run of the last published change of each VM, and the monotonic time when it was seen."""
        self._generation: dict[str, int | None] = {}
        """The generation that holds the last change of each VM."""
        self._counted: set[str] = set()
        """VMs that have counters."""
        self._sources: set[str] = set()
        """Keys of `Conditions`: named sources that were unavailable at some time."""
        self._last = 0
        self._lock = threading.Lock()
        self.registry = own = CollectorRegistry(auto_describe=False)
        info = Gauge("credferry_build_info", "The agent's version.", ("version", "python"), registry=own)
        info.labels(__version__, platform.python_version()).set(1)
        self._vms = Gauge("credferry_vms", "VMs by state.", ("state",), registry=own)
        self._state = Gauge(
            "credferry_vm_state", "1 for the state of a VM, 0 for all others.", ("vm", "state"), registry=own
        )
        self._behind = Gauge(
            "credferry_vm_out_of_step_seconds",
            "How long a VM has been behind what is published, in seconds; 0 if it is not.",
            ("vm",),
            registry=own,
        )
        restarts = Counter(
            "credferry_restarts",
            "Restarts since the agent started, by result.",
            ("vm", "result"),
            registry=own,
        )
        pushes = Counter(
            "credferry_pushes",
            "Pushes to guests since the agent started, by result.",
            ("vm", "result"),
            registry=own,
        )
        self._by_result = ((restarts, RESULTS), (pushes, PUSH_RESULTS))
        self._sealed = Counter(
            "credferry_generations_sealed",
            "Generations sealed since the agent started.",
            ("vm",),
            registry=own,
        )
        self._latency = Histogram(
            "credferry_rotation_seconds",
            "Time from when the agent saw a change until the VM ran it, in seconds.",
            buckets=BUCKETS,
            registry=own,
        )
        self._reconciled = Gauge(
            "credferry_last_reconcile_timestamp_seconds",
            "Time of the last check of all VMs; 0 if there was none.",
            registry=own,
        )
        self._unavailable = Gauge(
            "credferry_unavailable",
            "1 for each thing that is unavailable to the agent at present.",
            ("what",),
            registry=own,
        )
        self._sequence = Gauge(
            "credferry_audit_sequence", "The number of the agent's last audit record.", registry=None
        )

        self._secrets, self._fleet = SecretMetrics(own), FleetMetrics(own)

    def see_fleet(self, view: FleetView) -> None:
        """Note what is known of the fleet. A host without a fleet never calls this."""
        self._fleet.note(view)

    def hear(self, fact: Fact) -> None:
        """Count a fact that was just written to the audit."""
        with self._lock:
            self._facts += 1
            if fact.sequence > self._last:
                if not self._last:  # without a store the number is unknown: it must not go back to 0
                    self.registry.register(self._sequence)
                self._last = fact.sequence
                self._sequence.set(fact.sequence)
            run, seen = self._seen.get(fact.vm, ("", 0.0))
            for counter, results in self._by_result:
                if fact.event in results:
                    self._begin(fact.vm)
                    counter.labels(fact.vm, results[fact.event]).inc()
            if fact.event is Event.PUBLISHED:
                self._seen[fact.vm] = fact.run, self._monotonic()
            elif fact.event is Event.SEALED:
                self._begin(fact.vm)
                self._sealed.labels(fact.vm).inc()
                if fact.run == run:
                    self._generation[fact.vm] = fact.generation
            # A restart that an operator ordered has a run of its own, and delivers the change as well.
            elif fact.event in {Event.RESTARTED, Event.PUSHED} and (
                run and (fact.run == run or fact.generation == self._generation.get(fact.vm))
            ):
                del self._seen[fact.vm]
                self._latency.observe(self._monotonic() - seen)

    def looked(self, look: Look, store: Store, *, with_source: bool) -> None:
        """Note the state of all VMs. ``store`` says when a state began, if that was before this process."""
        pairs = list(zip(look.observed, look.decisions, strict=True))
        self._secrets.note(look.observed, store)
        self._states = {decision.vm.name: decision.state for _, decision in pairs}
        self._since = {
            decision.vm.name: self._behind_since(observed, decision, store) for observed, decision in pairs
        }
        if with_source and all(observed.unit is not None for observed, _ in pairs):
            self._reconciled.set(self._wall())
        with self._lock:
            for vm in self._states:
                self._begin(vm)
            for vm in self._counted - self._states.keys():
                self._end(vm)

    def key(self, lacks: Collection[str]) -> object:
        """A value that differs if anything but the passing of time has changed what `render` returns."""
        return self._states, frozenset(lacks), self._facts, self._fleet.key

    def render(self, lacks: Collection[str]) -> bytes:
        """All metrics in Prometheus' text format. ``lacks`` has the keys of what is unavailable now."""
        for gauge in (self._state, self._behind):
            gauge.clear()
        for each in State:
            self._vms.labels(each.value).set(sum(found is each for found in self._states.values()))
        for vm, found in self._states.items():
            since = self._since[vm]
            self._behind.labels(vm).set(0 if since is None else max(0.0, self._wall() - since))
            for each in State:
                self._state.labels(vm, each.value).set(found is each)
        self._sources |= {each for each in lacks if each.startswith("source ")}
        self._secrets.fill(self._wall())
        self._fleet.fill(self._wall())
        fleet = () if self._fleet.view is None else ("fleet",)
        for what in (*LACKS, *fleet, *sorted(self._sources)):
            self._unavailable.labels(what).set(what in lacks)
        return generate_latest(self.registry)

    def _begin(self, vm: str) -> None:
        """Have a VM's counters, from 0 on."""
        if vm not in self._counted:
            self._counted.add(vm)
            self._sealed.labels(vm)
            for counter, results in self._by_result:
                for result in results.values():
                    counter.labels(vm, result)

    def _end(self, vm: str) -> None:
        """Drop the counters of a VM that the configuration no longer names."""
        self._counted.remove(vm)
        self._sealed.remove(vm)
        for counter, results in self._by_result:
            for result in results.values():
                counter.remove(vm, result)

    def _behind_since(self, observed: Observed, decision: Decision, store: Store) -> float | None:
        vm = decision.vm.name
        known = self._since.get(vm)
        if decision.state is State.CHANGING:
            return known
        if decision.state not in _BEHIND:
            return None
        if known is not None:
            return known
        wanted = observed.desired.digest if isinstance(observed.desired, Desired) else None
        if observed.sealed is not None and observed.sealed.digest == wanted:
            # It was sealed as soon as it was seen, maybe long before this process began.
            return store.sealed_at(observed.sealed) or self._wall()
        return self._wall()
