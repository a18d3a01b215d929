# SPDX-License-Identifier: MIT
"""``credferry approve``: lets VMs whose policy wants an approval have what is sealed for them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

from credferry.agent.audit.events import Order
from credferry.agent.cli.common import DEFAULT_CONFIG, ConfigOption, JsonOption, ReasonOption, require_agent
from credferry.agent.cli.selection import AllOption, SomeVmArguments, chosen_or_all
from credferry.agent.cli.sync import sync_by_agent
from credferry.agent.config.loading import load
from credferry.agent.errors import UsageError, VmError
from credferry.agent.reconcile.decision import State

if TYPE_CHECKING:
    from credferry.agent.config.model import VmConfig
    from credferry.agent.control.client import RemoteAgent

_RUN = re.compile(r"[0-9a-f]{8,32}")
RunOption = Annotated[
    str,
    typer.Option(
        "--run",
        metavar="ID",
        help="Only the change of this run (8 digits at least); without VMs, for all that wait for it.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @app.command("approve")
    def approve(
        vms: SomeVmArguments = None,
        *,
        config: ConfigOption = DEFAULT_CONFIG,
        run: RunOption = "",
        is_all: AllOption = False,
        reason: ReasonOption = "",
        json: JsonOption = False,
    ) -> None:
        """Approve what is sealed for VMs with policy = "approve", and have them get it."""
        if run and not _RUN.fullmatch(run):
            raise UsageError("--run: not the ID of a run", hint="see it in: credferry status")
        loaded = load(config)
        named = chosen_or_all(loaded, vms, is_all=is_all or bool(run and not vms))
        with require_agent(loaded, Order.APPROVE, named) as agent:
            waiting = named if vms else _waiting(agent, named, run)
            did = {vm.name: _approve(agent, vm, run, reason) for vm in waiting}
            sync_by_agent(agent, loaded, waiting, did=did, json=json)


def _waiting(agent: RemoteAgent, vms: list[VmConfig], run: str) -> list[VmConfig]:
    """The VMs that wait for approval, of the change of a run if one is given. Raises `VmError` for none."""
    found = []
    for vm in vms:
        now = agent.vm(vm.name)
        is_of_run = any(f"--run {run}" in reason for reason in now["Reasons"])
        if State(now["State"]) is State.APPROVAL and (is_of_run or not run):
            found.append(vm)
    if not found:
        raise VmError("no VM waits for this approval", hint="see: credferry status")
    return found


def _approve(agent: RemoteAgent, vm: VmConfig, run: str, reason: str) -> str:
    agent.approve(vm.name, run, reason)
    return "approved"
