# SPDX-License-Identifier: MIT
"""``credferry hold``, ``release`` and ``retry``: an operator's word on VMs."""

from __future__ import annotations

import typer

from credferry.agent.audit.events import Order
from credferry.agent.cli.common import DEFAULT_CONFIG, ConfigOption, JsonOption, ReasonOption, require_agent
from credferry.agent.cli.selection import AllOption, SomeVmArguments, chosen_or_all
from credferry.agent.cli.sync import sync_by_agent
from credferry.agent.cli.tables import print_table
from credferry.agent.config.loading import load
from credferry.agent.config.model import Config, VmConfig
from credferry.agent.reconcile.decision import State


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
    """Give an order on VMs, and tell what it changed.

    What lets them be restarted again has them restarted, and tells the end.
    """
    with require_agent(config, order, vms) as agent:
        did = {}
        for vm in vms:
            before = agent.vm(vm.name)
            agent.order(order, vm.name, reason)
            did[vm.name] = changed(order, State(before["State"]), is_held=before["Held"])
        if order is Order.HOLD:
            print_table(["VM", "DID"], [*did.items()])
        else:
            sync_by_agent(agent, config, vms, did=did, json=json)


def changed(order: Order, state: State, *, is_held: bool) -> str:
    """What an order changes for a VM in some state, in words; or why it changes nothing."""
    match order:
        case Order.HOLD:
            return "was held already" if is_held else "held; no restart until it is released"
        case Order.RELEASE if is_held or state is State.HALTED:
            return "released"
        case Order.RELEASE if state is State.ROLLED_BACK:
            return "nothing: not held but rolled back, which retry ends"
        case Order.RELEASE if state is State.HELD:
            return "nothing: held by its policy"
        case Order.RELEASE:
            return "nothing: was not held"
        case _ if state in {State.FAILED, State.HALTED, State.ROLLED_BACK}:
            return "retried"
        case _:
            return "nothing: had not failed"
