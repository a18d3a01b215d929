# SPDX-License-Identifier: MIT
"""``credferry hold``, ``release`` and ``retry``: an operator's word on VMs."""

from __future__ import annotations

import typer

from credferry.agent.audit.events import Order
from credferry.agent.cli.common import DEFAULT_CONFIG, ConfigOption, JsonOption, ReasonOption, require_agent
from credferry.agent.cli.selection import AllOption, SomeVmArguments, chosen_or_all
from credferry.agent.cli.sync import sync_by_agent
from credferry.agent.config.loading import load
from credferry.agent.config.model import Config, VmConfig


def register(app: typer.Typer) -> None:
    """Add the verbs."""

    @app.command("hold")
    def hold(
        vms: SomeVmArguments = None,
        config: ConfigOption = DEFAULT_CONFIG,
        is_all: AllOption = False,
        reason: ReasonOption = "",
    ) -> None:
        """Do not restart these VMs when secrets rotate, until they are released, even after a reboot."""
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
        """Release VMs that are held or halted, and restart those whose secrets have changed since."""
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
        """Retry what failed for these VMs, even if their secrets have not changed since."""
        loaded = load(config)
        named = chosen_or_all(loaded, vms, is_all=is_all)
        _order(loaded, named, Order.RETRY, reason, json=json)


def _order(config: Config, vms: list[VmConfig], order: Order, reason: str, *, json: bool = False) -> None:
    """Give an order on VMs. What lets them be restarted again has them restarted, and tells the end."""
    with require_agent(config, order, vms) as agent:
        for vm in vms:
            agent.order(order, vm.name, reason)
        if order is not Order.HOLD:
            sync_by_agent(agent, config, vms, json=json)
