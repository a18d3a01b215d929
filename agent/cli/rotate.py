# SPDX-License-Identifier: MIT
"""``credferry rotate`` and ``rollback``: a restart by an operator's word."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from agent.cli.common import (
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
from agent.cli.single_pass import SinglePass
from agent.cli.sync import settled_look
from agent.config import Config, VmConfig, load
from agent.documents import OrderRow
from agent.errors import SourceError, VmError
from agent.events import Order
from agent.operators import Operator, record
from agent.orders import PERMITS
from agent.reconcile import State

if TYPE_CHECKING:
    from agent.cli.remote import RemoteAgent


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
        rows = _by_ourselves(config, vms, order, operator)
    else:
        with agent:
            rows = [_by_agent(agent, vm, order, reason) for vm in vms]
    if json:
        print_json(rows)
    else:
        print_table(
            ["VM", "STATE", "RUNS", "REASON"],
            [[row.vm, row.state.value, str(row.generation or "-"), row.reason] for row in rows],
        )
    fail_for_bad(config, ((config.vm(row.vm), row.state, row.reason) for row in rows))


def _by_agent(agent: RemoteAgent, vm: VmConfig, order: Order, reason: str) -> OrderRow:
    found = agent.carry_out(order, vm.name, reason)
    state = State(found["State"])
    if found["OrderResult"] and state is not State.FAILED:
        message, _, hint = found["OrderResult"].rpartition(": ")
        raise VmError(message, hint=hint)
    reason = found["OrderResult"] or "; ".join(found["Reasons"])
    return OrderRow(vm=vm.name, state=state, generation=found["Running"], reason=reason)


def _by_ourselves(config: Config, vms: list[VmConfig], order: Order, operator: Operator) -> list[OrderRow]:
    ours = SinglePass.of(config)
    manager = connect()
    rows = []
    try:
        ours.take_over(config, manager)
        for vm in vms:
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
                    state = ours.rollout.go_back(vm.name, manager, run)
            attempt = ours.store.attempt(vm.name)
            evidence = ours.observer.evidence(vm, manager.unit(vm.unit))
            rows.append(
                OrderRow(
                    vm=vm.name,
                    state=state,
                    generation=evidence.generation if evidence is not None else 0,
                    reason=attempt.reason if attempt is not None else "",
                )
            )
    finally:
        manager.close()
    return rows
