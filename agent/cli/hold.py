# SPDX-License-Identifier: MIT
"""``credferry hold``, ``release`` and ``retry``: an operator's word on VMs."""

from __future__ import annotations

import typer

from credferry.agent.audit.events import Order
from credferry.agent.audit.writer import Audit
from credferry.agent.cli.common import (
    DEFAULT_CONFIG,
    AllOption,
    ConfigOption,
    JsonOption,
    ReasonOption,
    SomeVmArguments,
    chosen_or_all,
    running_agent,
)
from credferry.agent.cli.sync import sync_by_agent, sync_once
from credferry.agent.config.loading import load
from credferry.agent.config.model import Config, VmConfig
from credferry.agent.rollout import orders
from credferry.agent.rollout.operators import Operator, record
from credferry.agent.store.opening import open_store


def register(app: typer.Typer) -> None:
    """Add the verbs."""

    @app.command("hold")
    def hold(
        vms: SomeVmArguments = None,
        config: ConfigOption = DEFAULT_CONFIG,
        is_all: AllOption = False,
        reason: ReasonOption = "",
    ) -> None:
        """Restart these VMs no more when secrets rotate, until they are released; survives a reboot."""
        loaded = load(config)
        _order(loaded, chosen_or_all(loaded, vms, is_all=is_all), Order.HOLD, reason)

    @app.command("release")
    def release(
        vms: SomeVmArguments = None,
        config: ConfigOption = DEFAULT_CONFIG,
        is_all: AllOption = False,
        reason: ReasonOption = "",
        json: JsonOption = False,
    ) -> None:
        """Release VMs that are held or halted, and restart those whose secrets have rotated meanwhile."""
        loaded = load(config)
        named = chosen_or_all(loaded, vms, is_all=is_all)
        _order(loaded, named, Order.RELEASE, reason, json=json)

    @app.command("retry")
    def retry(
        vms: SomeVmArguments = None,
        config: ConfigOption = DEFAULT_CONFIG,
        is_all: AllOption = False,
        reason: ReasonOption = "",
        json: JsonOption = False,
    ) -> None:
        """Try again what failed for these VMs, though it has not changed since."""
        loaded = load(config)
        named = chosen_or_all(loaded, vms, is_all=is_all)
        _order(loaded, named, Order.RETRY, reason, json=json)


def _order(config: Config, vms: list[VmConfig], order: Order, reason: str, *, json: bool = False) -> None:
    """Give an order on VMs. What lets them be restarted again has them restarted, and tells the end."""
    operator = Operator.of_process(reason)
    agent = running_agent(config)
    if agent is None:
        _by_ourselves(config, vms, order, operator)
        if order is not Order.HOLD:
            sync_once(config, vms, json=json)
        return
    with agent:
        for vm in vms:
            agent.order(order, vm.name, reason)
        if order is not Order.HOLD:
            sync_by_agent(agent, config, vms, json=json)


def _by_ourselves(config: Config, vms: list[VmConfig], order: Order, operator: Operator) -> None:
    store = open_store(config)
    audit = Audit(store)
    for vm in vms:
        if order is Order.RETRY:
            orders.retry(store, vm, record(audit, order, vm, operator))
            continue
        run = orders.hold(store, audit, vm, operator, held=order is Order.HOLD)
        if order is Order.RELEASE and orders.is_halted(store, vm):
            orders.retry(store, vm, run)
