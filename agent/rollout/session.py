# SPDX-License-Identifier: MIT
"""Builds the parts that work on VMs, in the same way for the daemon and for a process that seals once."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Self

from credferry.agent.audit.writer import Audit
from credferry.agent.reconcile.observer import Observer
from credferry.agent.reconcile.reseal import Resealing
from credferry.agent.reconcile.sealer import Sealer
from credferry.agent.reconcile.takeover import take_over
from credferry.agent.rollout.around import Around
from credferry.agent.rollout.jobs import RestartJobs
from credferry.agent.rollout.pacing import RestartPolicyGate
from credferry.agent.rollout.push_jobs import PushJobs
from credferry.agent.rollout.pusher import Pusher
from credferry.agent.rollout.restarter import Restarter
from credferry.agent.rollout.rollback import Rollback
from credferry.agent.rollout.rollout import Rollout
from credferry.agent.store.opening import open_store, present_key

if TYPE_CHECKING:
    from collections.abc import Callable

    from credferry.agent.config.model import Config
    from credferry.agent.store.generations import Store
    from credferry.agent.systemd.units import SystemManager


@dataclass(frozen=True, slots=True)
class Session:
    """The parts that share one store."""

    config: Config
    store: Store
    audit: Audit
    observer: Observer
    pacer: RestartPolicyGate
    sealer: Sealer
    rollout: Rollout
    resealing: Resealing

    @classmethod
    def of(
        cls,
        config: Config,
        store: Store,
        audit: Audit,
        pacer: RestartPolicyGate,
        *,
        stop: threading.Event | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> Self:
        """The parts for a configuration. Setting ``stop`` ends any wait early."""
        stop = threading.Event() if stop is None else stop
        observer = Observer(config, store)
        sealer = Sealer(store, observer, audit)
        jobs = RestartJobs(config, observer, stop, monotonic)
        around = Around(store, pacer.clock)
        rollback = Rollback(store, observer, audit, jobs, pacer.slots)
        restarter = Restarter(config, store, observer, audit, pacer, jobs, rollback, around, monotonic)
        pusher = Pusher(store, audit, PushJobs(observer), restarter)
        rollout = Rollout(
            config, store, observer, audit, pacer, restarter, pusher, rollback, stop, monotonic
        )
        resealing = Resealing(store, monotonic)
        return cls(config, store, audit, observer, pacer, sealer, rollout, resealing)

    @classmethod
    def for_sealing(cls, config: Config) -> Self:
        """The parts for a process that seals once. Raises as `open_store` does."""
        store = open_store(config)
        audit = Audit(store, present_key=partial(present_key, config))
        return cls.of(config, store, audit, RestartPolicyGate(config, store))

    def take_over(self, manager: SystemManager | None) -> bool:
        """Convert a store of an earlier form; whether it now has the present form.

        Raises `StoreError`, `BusError`.
        """
        return take_over(self.config.vms.values(), self.store, self.observer, manager)
