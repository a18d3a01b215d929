# SPDX-License-Identifier: MIT
"""``credferry plan``: what would happen, touching nothing."""

from __future__ import annotations

import typer

from agent.cli.common import (
    DEFAULT_CONFIG,
    ConfigOption,
    JsonOption,
    VmOption,
    fail_for_bad,
    look_untouched,
    print_json,
    print_table,
    steps,
)


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @app.command("plan")
    def plan(config: ConfigOption = DEFAULT_CONFIG, vm: VmOption = None, json: JsonOption = False) -> None:
        """Show what a sync would do now. Nothing is written, and no VM is touched."""
        loaded, look = look_untouched(config, vm)
        rows = [
            {
                "vm": decision.vm.name,
                "state": decision.state.value,
                "steps": steps(decision, loaded),
                "reasons": list(decision.reasons),
            }
            for decision in look.decisions
        ]
        if json:
            print_json(rows)
        else:
            print_table(
                ["VM", "STATE", "WOULD", "REASON"],
                [
                    [
                        decision.vm.name,
                        decision.state.value,
                        ", then ".join(steps(decision, loaded)) or "do nothing",
                        "; ".join(decision.reasons),
                    ]
                    for decision in look.decisions
                ],
            )
        fail_for_bad(loaded, ((each.vm, each.state, "; ".join(each.reasons)) for each in look.decisions))
