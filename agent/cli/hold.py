# SPDX-License-Identifier: MIT
"""``credferry hold``, ``release`` and ``retry``: an operator's word on VMs."""

from __future__ import annotations

from typing import Annotated

import msgspec
import typer

from agent.cli.common import DEFAULT_CONFIG, ConfigOption, JsonOption, chosen
from agent.cli.sync import sync_once
from agent.config import VmConfig, load
from agent.events import Event
from agent.journal import Audit
from agent.notes import Outcome
from agent.observe import open_store
from agent.store import Store, rollout_lock

VmArguments = Annotated[list[str], typer.Argument(help="VMs, as the configuration names them.")]


def register(app: typer.Typer) -> None:
    """Add the verbs."""

    @app.command("hold")
    def hold(vms: VmArguments, config: ConfigOption = DEFAULT_CONFIG) -> None:
        """Restart these VMs no more when secrets rotate, until they are released; survives a reboot."""
        loaded = load(config)
        named = chosen(loaded, vms)
        _hold(open_store(loaded), named, held=True)

    @app.command("release")
    def release(vms: VmArguments, config: ConfigOption = DEFAULT_CONFIG, json: JsonOption = False) -> None:
        """Release held VMs, and restart those whose secrets have rotated meanwhile."""
        loaded = load(config)
        named = chosen(loaded, vms)
        _hold(open_store(loaded), named, held=False)
        sync_once(loaded, named, json=json)

    @app.command("retry")
    def retry(vms: VmArguments, config: ConfigOption = DEFAULT_CONFIG, json: JsonOption = False) -> None:
        """Try again what failed for these VMs, though it has not changed since."""
        loaded = load(config)
        named = chosen(loaded, vms)
        store = open_store(loaded)
        for vm in named:
            with store.lock(rollout_lock(vm.name)):  # who is at it notes how it ends before this
                attempt = store.attempt(vm.name)
                if attempt is not None:
                    again = msgspec.structs.replace(attempt, outcome=Outcome.RETRY, reason="")
                    store.record_attempt(vm.name, again)
        sync_once(loaded, named, json=json)


def _hold(store: Store, vms: list[VmConfig], *, held: bool) -> None:
    event = Event.HELD if held else Event.RELEASED
    for vm in vms:
        if store.is_held(vm.name) is not held:
            store.hold(vm.name, held=held)
            Audit(store).record(event, f"{vm.name}: {event.label}", vm=vm.name, unit=vm.unit)
