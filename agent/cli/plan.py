# SPDX-License-Identifier: MIT
"""``credferry plan``: what would happen, touching nothing."""

from __future__ import annotations

from pathlib import Path

import typer

from credferry.agent.cli.common import (
    DEFAULT_CONFIG,
    ConfigOption,
    JsonOption,
    fail_for_bad,
    look_untouched,
    print_json,
    running_agent,
)
from credferry.agent.cli.documents import PlanRow
from credferry.agent.cli.selection import SomeVmArguments, VmOption, named
from credferry.agent.cli.tables import print_table
from credferry.agent.config.choosing import chosen
from credferry.agent.config.loading import load
from credferry.agent.config.model import Config
from credferry.agent.reconcile.decision import State
from credferry.agent.reconcile.status import steps


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @app.command("plan")
    def plan(
        vms: SomeVmArguments = None,
        *,
        config: ConfigOption = DEFAULT_CONFIG,
        vm: VmOption = None,
        json: JsonOption = False,
    ) -> None:
        """Show what a sync would do now. Write nothing, and change no VM."""
        loaded = load(config)
        rows = _rows(loaded, config, named(vms, vm))
        if json:
            print_json(rows)
        else:
            print_table(
                ["VM", "STATE", "WOULD", "REASON"],
                [
                    [
                        row.vm,
                        row.state.value,
                        ", then ".join(row.steps) or "do nothing",
                        "; ".join(row.reasons),
                    ]
                    for row in rows
                ],
            )
        fail_for_bad(loaded, ((loaded.vm(row.vm), row.state, "; ".join(row.reasons)) for row in rows))


def _rows(config: Config, file: Path, names: list[str] | None) -> list[PlanRow]:
    """By the running agent, which knows since when a VM has been due; else by a look of our own."""
    vms = {vm.name for vm in chosen(config, names)}
    agent = running_agent(config)
    if agent is not None:
        with agent:
            return [
                PlanRow(vm=vm, state=State(state), steps=would, reasons=reasons)
                for vm, state, would, reasons in agent.call("Plan")[0]
                if vm in vms
            ]
    _, look = look_untouched(file, names)
    return [
        PlanRow(
            vm=decision.vm.name,
            state=decision.state,
            steps=steps(decision),
            reasons=list(decision.reasons),
        )
        for decision in look.decisions
    ]
