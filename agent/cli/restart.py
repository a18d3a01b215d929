# SPDX-License-Identifier: MIT
"""``credferry rotate``, ``restart`` and ``rollback``: a push or a restart by an operator's word."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from credferry.agent.audit.events import Order
from credferry.agent.cli.common import (
    DEFAULT_CONFIG,
    ConfigOption,
    JsonOption,
    ReasonOption,
    fail_for_bad,
    print_json,
    require_agent,
)
from credferry.agent.cli.documents import OrderRow
from credferry.agent.cli.selection import VmArguments
from credferry.agent.cli.tables import print_table
from credferry.agent.cli.terminal import Progress
from credferry.agent.config.choosing import chosen
from credferry.agent.config.loading import load
from credferry.agent.config.model import VmConfig
from credferry.agent.errors import CredferryError, OrderError, VmError, describe
from credferry.agent.reconcile.decision import State

if TYPE_CHECKING:
    from credferry.agent.control.client import RemoteAgent


WithoutSlotOption = Annotated[
    bool,
    typer.Option("--without-slot", help="Do not ask the VM's fleet for a slot: one more VM may be down."),
]


def register(app: typer.Typer) -> None:
    """Add the verbs."""

    @app.command("rotate")
    def rotate(
        vms: VmArguments,
        config: ConfigOption = DEFAULT_CONFIG,
        reason: ReasonOption = "",
        *,
        without_slot: WithoutSlotOption = False,
        json: JsonOption = False,
    ) -> None:
        """Bring these running VMs what is sealed now, regardless of windows, limits and order.

        A live VM gets a push to its guest. Any other VM is restarted, and so is a VM whose push fails,
        unless the configuration says otherwise (on_live_failure).
        """
        _order(config, vms, Order.ROTATE, reason, json=json, with_slot=not without_slot)

    @app.command("restart")
    def restart(
        vms: VmArguments,
        config: ConfigOption = DEFAULT_CONFIG,
        reason: ReasonOption = "",
        *,
        without_slot: WithoutSlotOption = False,
        json: JsonOption = False,
    ) -> None:
        """Restart these running VMs now with what is sealed, regardless of windows, limits and order."""
        _order(config, vms, Order.RESTART, reason, json=json, with_slot=not without_slot)

    @app.command("rollback")
    def rollback(
        vms: VmArguments,
        config: ConfigOption = DEFAULT_CONFIG,
        reason: ReasonOption = "",
        *,
        without_slot: WithoutSlotOption = False,
        json: JsonOption = False,
    ) -> None:
        """Roll these VMs back to their previous secrets, until the secrets change or credferry retry."""
        _order(config, vms, Order.ROLL_BACK, reason, json=json, with_slot=not without_slot)


def _order(file: Path, names: list[str], order: Order, reason: str, *, json: bool, with_slot: bool) -> None:
    config = load(file)
    vms = chosen(config, names)
    with require_agent(config, order, vms) as agent, Progress() as progress:
        carry_out = partial(
            _by_agent, agent, order=order, reason=reason, tell=progress.tell, with_slot=with_slot
        )
        rows, refusals = _each(vms, carry_out)
    if rows or not refusals:
        _print(rows, json=json)
    if refusals:
        more = f"; and {len(refusals) - 1} more VMs refused it, see credferry status" if refusals[1:] else ""
        raise VmError(f"{describe(refusals[0])}{more}", hint="")
    fail_for_bad(config, ((config.vm(row.vm), row.state, row.reason) for row in rows))


def _each(
    vms: list[VmConfig], carry_out: Callable[[VmConfig], OrderRow]
) -> tuple[list[OrderRow], list[CredferryError]]:
    """What became of each VM, and why others cannot take the order, which keeps nobody else from it."""
    rows: list[OrderRow] = []
    refusals: list[CredferryError] = []
    for vm in vms:
        try:
            rows.append(carry_out(vm))
        except (OrderError, VmError) as error:
            refusals.append(error)
    return rows, refusals


def _print(rows: list[OrderRow], *, json: bool) -> None:
    if json:
        print_json(rows)
    else:
        print_table(
            ["VM", "STATE", "RUNS", "REASON"],
            [[row.vm, row.state.value, str(row.generation or "-"), row.reason] for row in rows],
        )


def _by_agent(
    agent: RemoteAgent,
    vm: VmConfig,
    *,
    order: Order,
    reason: str,
    tell: Callable[[str], None],
    with_slot: bool,
) -> OrderRow:
    found = agent.carry_out(order, vm.name, reason, tell, with_slot=with_slot)
    state = State(found["State"])
    if found["OrderResult"] and state is not State.FAILED:
        raise VmError(found["OrderResult"], hint="")  # the agent's text ends with its hint
    reason = found["OrderResult"] or "; ".join(found["Reasons"])
    return OrderRow(vm=vm.name, state=state, generation=found["Running"], reason=reason)
