# SPDX-License-Identifier: MIT
"""The daemon's part in a fleet: opens its engine, and reports once that it is away and that it is back."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from credferry.agent.daemon.reports import Reports
from credferry.agent.messages import Messages
from credferry.agent.rollout.slots import NoSlots
from credferry.agent.sealing.keys import read_machine_id

if TYPE_CHECKING:
    from collections.abc import Callable

    from credferry.agent.config.model import Config
    from credferry.agent.daemon.parts import Parts
    from credferry.agent.fleet.model import Engine, Holder
    from credferry.agent.log import Conditions
    from credferry.agent.rollout.fleet import FleetSlots
    from credferry.agent.rollout.slots import FleetView, Slots
    from credferry.agent.store.generations import Store

    Opened: TypeAlias = tuple[Engine, Holder]

_log = Messages()


class Fleet:
    """The fleet of an agent, from one configuration to the next."""

    def __init__(self, parts: Parts, hint: Callable[[str], None]) -> None:
        self._parts = parts
        self._hint = hint
        self._slots: FleetSlots | None = None
        self.reports = Reports(parts.clock.wall)

    def join(self, config: Config) -> Opened | None:
        """The engine that a configuration names, and this host in it; None for a host without a fleet.

        Nothing is asked yet. Raises `ConfigurationError` and `KeyFileError`.
        """
        if config.fleet is None:
            return None
        from credferry.agent.fleet.opening import holder  # noqa: PLC0415 (other hosts load nothing of it)
        from credferry.agent.store.fleet_cluster import FleetCluster  # noqa: PLC0415 (see above)

        machine_id = read_machine_id(Path(config.machine_id_file))
        engine = self._parts.engine(config.fleet, FleetCluster(Path(config.state_directory)))
        return engine, holder(config.fleet, "", machine_id)

    def slots(self, config: Config, store: Store, opened: Opened | None) -> Slots:
        """The slots for a configuration. What is remembered of VMs' turns stays."""
        if opened is None or config.fleet is None:
            self.reports.use(config, None, "")
            return NoSlots()
        from credferry.agent.rollout.fleet import FleetSlots  # noqa: PLC0415 (see above)
        from credferry.agent.store.fleet_cluster import FleetCluster  # noqa: PLC0415 (see above)

        presence = self._parts.presence(config.fleet, FleetCluster(store.state))
        self.reports.use(config, presence, opened[1].host)

        if self._slots is None:
            thread = self._parts.engine_thread()
            hint = partial(self._hint, "fleet")
            self._slots = FleetSlots(config, store, *opened, self._parts.clock, thread, hint)
        else:
            self._slots.use(config, store, *opened)
        return self._slots

    def stop(self) -> None:
        """Write down what the next run of the agent must know. Waits for no call that is under way."""
        if self._slots is not None:
            self._slots.engine.write_down()


def report(view: FleetView, conditions: Conditions, now: float) -> None:
    """Log once that the engine cannot be used, and once that it can be again."""
    if view.away is not None:
        if conditions.begin("fleet", "", now):
            _log.error(
                "the fleet's engine cannot be used; the agent seals, and waits with restarts and pushes",
                reason=view.away.reason,
                hint=view.away.hint,
            )
    elif counted := conditions.end("fleet", now):
        _log.info("the fleet's engine can be used again", unavailable_for=counted)
