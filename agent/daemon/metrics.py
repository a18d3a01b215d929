# SPDX-License-Identifier: MIT
"""Metrics as a Prometheus textfile: states of VMs, what the agent has done, and what is unavailable.

The file contains names of VMs. It never contains a fingerprint, a value, a value's length, or the name of a
credential.
"""

from __future__ import annotations

import os
import platform
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from credferry.agent import __version__
from credferry.agent.audit.events import Event
from credferry.agent.reconcile.decision import State
from credferry.agent.reconcile.desired import Desired

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from pathlib import Path

    from prometheus_client import Metric

    from credferry.agent.audit.writer import Fact
    from credferry.agent.reconcile.decision import Decision, Observed
    from credferry.agent.reconcile.observer import Look
    from credferry.agent.store.generations import Store

BUCKETS = (0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0)
"""Upper bounds in seconds. VMs that waited for a window, or were held, may exceed the last one."""
LACKS = ("source", "bus", "store", "key")
"""What may be unavailable for a time, by the keys of the agent's `Conditions`."""
RESULTS = {
    Event.RESTARTED: "done",
    Event.RESTART_FAILED: "failed",
    Event.ROLLED_BACK: "rolled back",
    Event.ROLLBACK_FAILED: "rollback failed",
}

_BEHIND = {
    State.RESTART_DUE,
    State.REFUSED,
    State.FAILED,
    State.HELD,
    State.IGNORED,
    State.HALTED,
    State.WAITING,
}
"""The VM does not run, or cannot run, what is published. A VM that is changing counts as it did before."""


@dataclass(slots=True)
class _Latencies:
    """A histogram. ``counts`` has, for each of `BUCKETS`, how many rotations took at most that time.

    ``count`` and ``sum`` are those of all rotations.
    """

    counts: list[int] = field(default_factory=lambda: [0] * len(BUCKETS))
    count: int = 0
    sum: float = 0.0

    def observe(self, seconds: float) -> None:
        self.count += 1
        self.sum += seconds
        for index, bound in enumerate(BUCKETS):
            self.counts[index] += seconds <= bound


@dataclass(slots=True, eq=False)  # a registry keeps its collectors by identity
class Metrics:
    """Values since the agent's start. Any thread may call `hear`; only the loop calls `looked`."""

    wall: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
    _states: dict[str, State] = field(default_factory=dict)
    _since: dict[str, float | None] = field(default_factory=dict)
    """Since when each VM has been behind, in wall-clock time; None if it is not behind."""
    _reconciled: float = 0.0
    _lacks: frozenset[str] = frozenset()
    _facts: dict[tuple[str, Event], int] = field(default_factory=dict)
    _seen: dict[str, tuple[str, float]] = field(default_factory=dict)
    """The run of the last published change of each VM, and the monotonic time when it was seen."""
    _sealed: dict[str, int | None] = field(default_factory=dict)
    """The generation that holds the last change of each VM."""
    _latencies: _Latencies = field(default_factory=_Latencies)
    _sequence: int = 0
    _written: object = None
    _written_at: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def hear(self, fact: Fact) -> None:
        """Count a fact that was just written to the audit."""
        with self._lock:
            self._sequence = max(self._sequence, fact.sequence)
            self._facts[fact.vm, fact.event] = self._facts.get((fact.vm, fact.event), 0) + 1
            run, seen = self._seen.get(fact.vm, ("", 0.0))
            if fact.event is Event.PUBLISHED:
                self._seen[fact.vm] = fact.run, self.monotonic()
            elif fact.event is Event.SEALED and fact.run == run:
                self._sealed[fact.vm] = fact.generation
            # A restart that an operator ordered has a run of its own, and delivers the change as well.
            elif fact.event is Event.RESTARTED and (
                run and (fact.run == run or fact.generation == self._sealed.get(fact.vm))
            ):
                del self._seen[fact.vm]
                self._latencies.observe(self.monotonic() - seen)

    def looked(self, look: Look, store: Store, *, with_source: bool) -> None:
        """Note the state of all VMs. ``store`` says when a state began, if that was before this process."""
        pairs = list(zip(look.observed, look.decisions, strict=True))
        with self._lock:
            self._states = {decision.vm.name: decision.state for _, decision in pairs}
            self._since = {
                decision.vm.name: self._behind_since(observed, decision, store)
                for observed, decision in pairs
            }
            if with_source and all(observed.unit is not None for observed, _ in pairs):
                self._reconciled = self.wall()

    def write_if_due(self, path: Path, lacks: Collection[str], period: float) -> None:
        """Write the textfile if something changed, or after ``period`` seconds. Raises OSError."""
        with self._lock:
            self._lacks = frozenset(lacks)
            now, told = self.monotonic(), self._told()
            if told == self._written and now - self._written_at < period:
                return
            content = self._render()
        replace(path, content)
        self._written, self._written_at = told, now

    def _told(self) -> object:
        return dict(self._states), self._lacks, self._sequence, dict(self._facts)

    def _render(self) -> bytes:
        # This import takes more time and memory than all others: load it only if metrics are wanted.
        from prometheus_client import CollectorRegistry, generate_latest  # noqa: PLC0415 (see above)

        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        return generate_latest(registry)

    def collect(self) -> Iterator[Metric]:
        """All metrics, for a registry of prometheus-client."""
        from prometheus_client.core import (  # noqa: PLC0415 (see _render)
            CounterMetricFamily,
            GaugeMetricFamily,
            HistogramMetricFamily,
        )

        info = GaugeMetricFamily("credferry_build_info", "The agent.", labels=("version", "python"))
        info.add_metric((__version__, platform.python_version()), 1)
        yield info
        vms = GaugeMetricFamily("credferry_vms", "VMs by state.", labels=("state",))
        state = GaugeMetricFamily(
            "credferry_vm_state", "1 for the state that a VM is in.", labels=("vm", "state")
        )
        behind = GaugeMetricFamily(
            "credferry_vm_out_of_step_seconds",
            "How long a VM has not run what is published; 0 where it does.",
            labels=("vm",),
        )
        for each in State:
            vms.add_metric((each.value,), sum(found is each for found in self._states.values()))
        for vm, found in self._states.items():
            since = self._since.get(vm)
            behind.add_metric((vm,), 0 if since is None else max(0.0, self.wall() - since))
            for each in State:
                state.add_metric((vm, each.value), found is each)
        yield from (vms, state, behind)
        restarts = CounterMetricFamily(
            "credferry_restarts", "Restarts since the agent's start, by result.", labels=("vm", "result")
        )
        sealed = CounterMetricFamily(
            "credferry_generations_sealed", "Generations since the agent's start.", labels=("vm",)
        )
        for vm in self._states:
            sealed.add_metric((vm,), self._facts.get((vm, Event.SEALED), 0))
            for event, result in RESULTS.items():
                restarts.add_metric((vm, result), self._facts.get((vm, event), 0))
        yield from (restarts, sealed)
        latency = HistogramMetricFamily(
            "credferry_rotation_seconds", "From a change being seen to a VM being found to run on it."
        )
        counts = [
            (str(bound), float(each)) for bound, each in zip(BUCKETS, self._latencies.counts, strict=True)
        ]
        latency.add_metric((), [*counts, ("+Inf", float(self._latencies.count))], self._latencies.sum)
        yield latency
        yield GaugeMetricFamily(
            "credferry_last_reconcile_timestamp_seconds",
            "When published, sealed and running were last compared for every VM; 0 for never.",
            self._reconciled,
        )
        lacking = GaugeMetricFamily(
            "credferry_unavailable", "1 for what the agent has to do without at present.", labels=("what",)
        )
        for what in LACKS:
            lacking.add_metric((what,), what in self._lacks)
        yield lacking
        if self._sequence:  # without a store it is unknown: it must not go back to 0
            yield GaugeMetricFamily(
                "credferry_audit_sequence",
                "The number of the agent's last record in the audit.",
                self._sequence,
            )

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
            return store.sealed_at(observed.sealed) or self.wall()
        return self.wall()


def replace(path: Path, content: bytes) -> None:
    """Replace a file that others read, mode 0644 whatever the umask, in one step. Raises OSError.

    prometheus-client's own ``write_to_textfile`` leaves the mode to the umask, and a collector drops a file
    that it may not read. This function also follows no symlink that another user may have put there.
    """
    temporary = path.with_name(f".{path.name}.new")  # a collector takes *.prom only
    temporary.unlink(missing_ok=True)
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            os.fchmod(descriptor, 0o644)
        temporary.rename(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
