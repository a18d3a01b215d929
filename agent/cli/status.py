# SPDX-License-Identifier: MIT
"""``credferry status``: per VM, what is published, sealed and running."""

from __future__ import annotations

from typing import Any

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
)
from agent.desired import Desired
from agent.reconcile import Decision, Observed


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @app.command("status")
    def status(config: ConfigOption = DEFAULT_CONFIG, vm: VmOption = None, json: JsonOption = False) -> None:
        """Show for each VM what is published, sealed and running, and whether they are in step."""
        loaded, look = look_untouched(config, vm)
        rows = [_row(*pair) for pair in zip(look.observed, look.decisions, strict=True)]
        if json:
            print_json(rows)
        else:
            print_table(
                ["VM", "UNIT", "STATE", "PUBLISHED", "SEALED", "RUNNING", "REASON"],
                [
                    [
                        row["vm"],
                        row["unit_state"],
                        row["state"],
                        row["published"]["digest"] or "-",
                        _generation(row["sealed"]),
                        _generation(row["running"]),
                        "; ".join(row["reasons"]),
                    ]
                    for row in rows
                ],
            )
        fail_for_bad(loaded, ((each.vm, each.state, "; ".join(each.reasons)) for each in look.decisions))


def _row(observed: Observed, decision: Decision) -> dict[str, Any]:
    unit, sealed, stamp = observed.unit, observed.sealed, observed.stamp
    wanted = observed.desired if isinstance(observed.desired, Desired) else None
    return {
        "vm": observed.vm.name,
        "unit": observed.vm.unit,
        "unit_state": f"{unit.active} ({unit.sub})" if unit else "unknown",
        "state": decision.state.value,
        "published": {
            "digest": wanted.digest[:12] if wanted else None,
            "credentials": {each.name: each.fingerprint for each in wanted.entries} if wanted else {},
        },
        "sealed": {"generation": sealed.generation, "digest": sealed.digest[:12]} if sealed else None,
        "running": {"generation": stamp.generation, "digest": stamp.digest[:12]} if stamp else None,
        "reasons": list(decision.reasons),
    }


def _generation(cell: dict[str, Any] | None) -> str:
    return f"{cell['generation']} ({cell['digest']})" if cell else "-"
