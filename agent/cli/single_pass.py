# SPDX-License-Identifier: MIT
"""What works on VMs without a daemon: the parts that the agent has, put together for one pass."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Self

from agent.config import Config
from agent.journal import Audit
from agent.observe import Observer, open_store, present_key
from agent.pace import Pacer
from agent.rollout import Rollout
from agent.sealer import Sealer
from agent.store import Store
from agent.takeover import take_over
from agent.units import SystemManager


@dataclass(frozen=True, slots=True)
class SinglePass:
    """The parts, over one store."""

    store: Store
    audit: Audit
    observer: Observer
    pacer: Pacer
    sealer: Sealer
    rollout: Rollout

    @classmethod
    def of(cls, config: Config) -> Self:
        """The parts as a configuration has them. Raises as `open_store` does."""
        store = open_store(config)
        audit = Audit(store, present_key=partial(present_key, config))
        observer = Observer(config, store)
        pacer = Pacer(config, store, is_single_pass=True)
        return cls(
            store,
            audit,
            observer,
            pacer,
            Sealer(store, observer, audit),
            Rollout(config, store, observer, audit, pacer),
        )

    def take_over(self, config: Config, manager: SystemManager | None) -> None:
        """Bring a store of an earlier form to the present one. Raises `StoreError`, `BusError`."""
        take_over(config.vms.values(), self.store, self.observer, manager)
