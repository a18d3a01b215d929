# SPDX-License-Identifier: MIT
"""``credferry rotate`` and ``rollback``: a restart by an operator's word."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from credferry.agent.audit.events import Order
from credferry.agent.cli.common import (
    DEFAULT_CONFIG,
    ConfigOption,
    JsonOption,
    ReasonOption,
    VmArguments,
    chosen,
    connect,
    fail_for_bad,
    print_json,
    print_table,
    running_agent,
)
from credferry.agent.cli.documents import OrderRow
from credferry.agent.cli.sync import settled_look
from credferry.agent.config.loading import load
from credferry.agent.config.model import Config, VmConfig
from credferry.agent.errors import CredferryError, OrderError, SourceError, VmError
from credferry.agent.reconcile.decision import State
from credferry.agent.rollout.operators import Operator, record
from credferry.agent.rollout.orders import PERMITS
from credferry.agent.rollout.session import Session
from credferry.agent.systemd.units import SystemManager

if TYPE_CHECKING:
    from credferry.agent.control.client import RemoteAgent


def register(app: typer.Typer) -> None:
    """Add the verbs."""

    @app.command("rotate")
    def rotate(
        vms: VmArguments,
        config: ConfigOption = DEFAULT_CONFIG,
        reason: ReasonOption = "",
        json: JsonOption = False,
    ) -> None:
        """Restart these running VMs now onto what is sealed, past windows, rates and turns."""
        _order(config, vms, Order.ROTATE, reason, json=json)

    @app.command("rollback")
    def rollback(
        vms: VmArguments,
        config: ConfigOption = DEFAULT_CONFIG,
        reason: ReasonOption = "",
        json: JsonOption = False,
    ) -> None:
        """Put these VMs back on what they had before, until their secrets change or credferry retry."""
        _order(config, vms, Order.ROLL_BACK, reason, json=json)


def _order(file: Path, names: list[str], order: Order, reason: str, *, json: bool) -> None:
    config, operator = load(file), Operator.of_process(reason)
    vms = chosen(config, names)
    agent = running_agent(config)
    if agent is None:
        manager = connect()
        try:
            rows, refusals = _each(vms, _by_ourselves(config, manager, order, operator))
        finally:
            manager.close()
    else:
        with agent:
            rows, refusals = _each(vms, lambda vm: _by_agent(agent, vm, order, reason))
    if rows or not refusals:
        _print(rows, json=json)
    if refusals:
        more = f"; and {len(refusals) - 1} more VMs refuse it, see credferry status" if refusals[1:] else ""
        raise VmError(str(refusals[0]), hint=f"{refusals[0].hint}{more}")
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


def _by_agent(agent: RemoteAgent, vm: VmConfig, order: Order, reason: str) -> OrderRow:
    found = agent.carry_out(order, vm.name, reason)
    state = State(found["State"])
    if found["OrderResult"] and state is not State.FAILED:
        message, _, hint = found["OrderResult"].rpartition(": ")
        raise VmError(message, hint=hint)
    reason = found["OrderResult"] or "; ".join(found["Reasons"])
    return OrderRow(vm=vm.name, state=state, generation=found["Running"], reason=reason)


def _by_ourselves(
    config: Config, manager: SystemManager, order: Order, operator: Operator
) -> Callable[[VmConfig], OrderRow]:
    ours = Session.for_one_pass(config)
    ours.take_over(manager)

    def carry_out(vm: VmConfig) -> OrderRow:
        given = time.monotonic()
        observed = ours.observer.look_or_refuse([vm], manager).observed[0]
        PERMITS[order](ours.store, observed)
        run = record(ours.audit, order, vm, operator)
        state = None
        while state is None:
            # What is published is sealed first, as the agent would have done.
            with suppress(SourceError):
                look = settled_look(config, ours.observer, [vm], manager, given)
                ours.sealer.seal_due(look)
            if order is Order.ROTATE:
                state = ours.rollout.rotate(vm.name, manager, given, run)
            else:
                state = ours.rollout.roll_back(vm.name, manager, run)
        attempt = ours.store.attempt(vm.name)
        evidence = ours.observer.evidence(vm, manager.unit(vm.unit))
        return OrderRow(
            vm=vm.name,
            state=state,
            generation=evidence.generation if evidence is not None else 0,
            reason=attempt.reason if attempt is not None else "",
        )

    return carry_out
