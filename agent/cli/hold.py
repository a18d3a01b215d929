# SPDX-License-Identifier: MIT
"""``credferry hold``, ``release`` and ``retry``: an operator's word on VMs."""

from __future__ import annotations

from collections.abc import Callable

import typer

from agent import orders
from agent.cli.common import (
    DEFAULT_CONFIG,
    AllOption,
    ConfigOption,
    JsonOption,
    SomeVmArguments,
    chosen_or_all,
    running_agent,
)
from agent.cli.sync import sync_by_agent, sync_once
from agent.config import Config, VmConfig, load
from agent.journal import Audit
from agent.observe import open_store


def register(app: typer.Typer) -> None:
    """Add the verbs."""

    @app.command("hold")
    def hold(
        vms: SomeVmArguments = None, config: ConfigOption = DEFAULT_CONFIG, is_all: AllOption = False
    ) -> None:
        """Restart these VMs no more when secrets rotate, until they are released; survives a reboot."""
        loaded = load(config)
        named = chosen_or_all(loaded, vms, is_all=is_all)
        agent = running_agent(loaded)
        if agent is None:
            _hold(loaded, named, held=True)
            return
        with agent:
            for vm in named:
                agent.call("Hold", vm.name)

    @app.command("release")
    def release(
        vms: SomeVmArguments = None,
        config: ConfigOption = DEFAULT_CONFIG,
        is_all: AllOption = False,
        json: JsonOption = False,
    ) -> None:
        """Release VMs that are held or halted, and restart those whose secrets have rotated meanwhile."""
        loaded = load(config)
        named = chosen_or_all(loaded, vms, is_all=is_all)
        _let_go(loaded, named, "Release", lambda: _hold(loaded, named, held=False), json=json)

    @app.command("retry")
    def retry(
        vms: SomeVmArguments = None,
        config: ConfigOption = DEFAULT_CONFIG,
        is_all: AllOption = False,
        json: JsonOption = False,
    ) -> None:
        """Try again what failed for these VMs, though it has not changed since."""
        loaded = load(config)
        named = chosen_or_all(loaded, vms, is_all=is_all)
        _let_go(loaded, named, "Retry", lambda: _retry(loaded, named), json=json)


def _let_go(
    config: Config,
    vms: list[VmConfig],
    method: str,
    by_ourselves: Callable[[], None],
    *,
    json: bool,
) -> None:
    """Say what lets VMs be restarted again, have them restarted, and tell what became of them."""
    agent = running_agent(config)
    if agent is None:
        by_ourselves()
        sync_once(config, vms, json=json)
        return
    with agent:
        for vm in vms:
            agent.call(method, vm.name)
        sync_by_agent(agent, config, vms, json=json)


def _hold(config: Config, vms: list[VmConfig], *, held: bool) -> None:
    store = open_store(config)
    for vm in vms:
        orders.hold(store, Audit(store), vm, held=held)
        if not held and orders.is_halted(store, vm):
            orders.retry(store, vm)


def _retry(config: Config, vms: list[VmConfig]) -> None:
    store = open_store(config)
    for vm in vms:
        orders.retry(store, vm)
