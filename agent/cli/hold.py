# SPDX-License-Identifier: MIT
"""``credferry hold``, ``release`` and ``retry``: an operator's word on VMs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import typer

from agent import orders
from agent.cli.common import DEFAULT_CONFIG, ConfigOption, JsonOption, VmArguments, chosen, running_agent
from agent.cli.sync import sync_by_agent, sync_once
from agent.config import Config, VmConfig, load
from agent.journal import Audit
from agent.observe import open_store


def register(app: typer.Typer) -> None:
    """Add the verbs."""

    @app.command("hold")
    def hold(vms: VmArguments, config: ConfigOption = DEFAULT_CONFIG) -> None:
        """Restart these VMs no more when secrets rotate, until they are released; survives a reboot."""
        loaded = load(config)
        named = chosen(loaded, vms)
        agent = running_agent(loaded)
        if agent is None:
            _hold(loaded, named, held=True)
            return
        with agent:
            for vm in named:
                agent.call("Hold", vm.name)

    @app.command("release")
    def release(vms: VmArguments, config: ConfigOption = DEFAULT_CONFIG, json: JsonOption = False) -> None:
        """Release held VMs, and restart those whose secrets have rotated meanwhile."""
        _let_go(config, vms, "Release", lambda loaded, named: _hold(loaded, named, held=False), json=json)

    @app.command("retry")
    def retry(vms: VmArguments, config: ConfigOption = DEFAULT_CONFIG, json: JsonOption = False) -> None:
        """Try again what failed for these VMs, though it has not changed since."""
        _let_go(config, vms, "Retry", _retry, json=json)


def _let_go(
    file: Path,
    names: list[str],
    method: str,
    by_ourselves: Callable[[Config, list[VmConfig]], None],
    *,
    json: bool,
) -> None:
    """Say what lets VMs be restarted again, have them restarted, and tell what became of them."""
    config = load(file)
    vms = chosen(config, names)
    agent = running_agent(config)
    if agent is None:
        by_ourselves(config, vms)
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


def _retry(config: Config, vms: list[VmConfig]) -> None:
    store = open_store(config)
    for vm in vms:
        orders.retry(store, vm)
