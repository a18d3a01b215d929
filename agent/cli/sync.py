# SPDX-License-Identifier: MIT
"""``credferry sync``: one pass, no daemon."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from agent.cli.common import (
    DEFAULT_CONFIG,
    ConfigOption,
    JsonOption,
    VmOption,
    chosen,
    connect,
    fail_for_bad,
    print_json,
    print_table,
)
from agent.config import Config, VmConfig, load
from agent.errors import SourceError
from agent.journal import Audit
from agent.observe import Look, Observer, open_store
from agent.reconcile import State
from agent.rollout import Reporter, Rollout
from agent.settle import Settler
from agent.units import SystemManager

_LOOK_AGAIN_SECONDS = 0.2


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @app.command("sync")
    def sync(
        config: ConfigOption = DEFAULT_CONFIG,
        vm: VmOption = None,
        no_restart: Annotated[
            bool, typer.Option("--no-restart", help="Seal only; systemd is not asked.")
        ] = False,
        wait: Annotated[
            float,
            typer.Option("--wait", help="For the source to be complete.", metavar="SECONDS"),
        ] = 0.0,
        json: JsonOption = False,
    ) -> None:
        """Seal what is published and restart the VMs that run something else; once."""
        loaded = load(config)
        vms = chosen(loaded, vm)
        manager = None if no_restart else connect()
        store = open_store(loaded)
        audit = Audit(store)
        observer = Observer(loaded, store)
        rollout = Rollout(loaded, store, observer, audit)
        look = _settled_look(loaded, observer, vms, manager, time.monotonic() + wait)
        sealed = rollout.seal_due(look)
        Reporter(audit).report(look.decisions)
        states = {decision.vm.name: decision.state for decision in look.decisions}
        if manager is not None:
            due = [decision.vm.name for decision in look.decisions if decision.restart]
            states |= rollout.restart(due, manager)
            manager.close()
        reasons = {decision.vm.name: "; ".join(decision.reasons) for decision in look.decisions}
        for name, state in states.items():
            attempt = store.attempt(name) if state in {State.FAILED, State.HALTED} else None
            reasons[name] = attempt.reason if attempt is not None else reasons[name]
        rows = [
            {
                "vm": name,
                "sealed": name in sealed,
                "state": State.IN_STEP.value if state is State.SEAL_DUE else state.value,
                "reason": reasons[name],
            }
            for name, state in states.items()
        ]
        if json:
            print_json(rows)
        else:
            print_table(
                ["VM", "SEALED", "STATE", "REASON"],
                [[row["vm"], "yes" if row["sealed"] else "", row["state"], row["reason"]] for row in rows],  # type: ignore[list-item]  # str and bool in one mapping
            )
        fail_for_bad(loaded, ((loaded.vm(name), state, reasons[name]) for name, state in states.items()))


def _settled_look(
    config: Config, observer: Observer, vms: list[VmConfig], manager: SystemManager | None, deadline: float
) -> Look:
    """A look at a source that is quiet and, until the deadline, complete. Raises `SourceError`."""
    settler = Settler(config.source.quiet_seconds, config.source.quiet_max_seconds)
    while True:
        now = time.monotonic()
        try:
            look = observer.look(vms, manager)
        except SourceError:
            if now >= deadline:
                raise
            time.sleep(_LOOK_AGAIN_SECONDS)
            continue
        unsettled = settler.wait(look.generation, look.content, now)
        refused = any(decision.state is State.REFUSED for decision in look.decisions)
        if refused and now < deadline:
            time.sleep(_LOOK_AGAIN_SECONDS)
        elif unsettled and any(decision.seal for decision in look.decisions):
            time.sleep(unsettled)
        else:
            return look
