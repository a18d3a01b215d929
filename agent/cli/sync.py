# SPDX-License-Identifier: MIT
"""``credferry sync``: one pass, no daemon."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from credferry.agent.cli.common import (
    DEFAULT_CONFIG,
    ConfigOption,
    JsonOption,
    VmOption,
    chosen,
    connect,
    fail_for_bad,
    print_json,
    print_table,
    running_agent,
)
from credferry.agent.cli.documents import SyncRow
from credferry.agent.config.loading import load
from credferry.agent.config.model import Config, VmConfig
from credferry.agent.daemon.reporter import Reporter
from credferry.agent.errors import HiddenSourceError, SourceError
from credferry.agent.reconcile.decision import State
from credferry.agent.reconcile.observer import Look, Observer
from credferry.agent.rollout.session import Session
from credferry.agent.source.settling import Settler
from credferry.agent.systemd.units import SystemManager

if TYPE_CHECKING:
    from credferry.agent.control.client import RemoteAgent

_LOOK_AGAIN_SECONDS = 0.2


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @app.command("sync")
    def sync(
        config: ConfigOption = DEFAULT_CONFIG,
        vm: VmOption = None,
        no_restart: Annotated[
            bool, typer.Option("--no-restart", help="Only seal; do not ask systemd.")
        ] = False,
        wait: Annotated[
            float,
            typer.Option("--wait", help="Wait this long until the source is complete.", metavar="SECONDS"),
        ] = 0.0,
        json: JsonOption = False,
    ) -> None:
        """Once, seal what is published, and restart the VMs that run something else."""
        loaded = load(config)
        vms = chosen(loaded, vm)
        agent = running_agent(loaded) if not no_restart and wait == 0.0 else None
        if agent is not None:
            with agent:
                sync_by_agent(agent, loaded, vms, json=json)
            return
        sync_once(loaded, vms, connect_first=not no_restart, wait=wait, json=json)


def sync_by_agent(agent: RemoteAgent, config: Config, vms: list[VmConfig], *, json: bool = False) -> None:
    """Have the running agent look now, and tell what became of some VMs. Raises `VmError` for a failure."""
    before = {vm.name: agent.vm(vm.name)["Sealed"] for vm in vms}
    after = agent.settle(list(before))
    rows = [
        SyncRow(
            vm=name,
            sealed=found["Sealed"] != before[name],
            state=State(found["State"]),
            reason="; ".join(found["Reasons"]),
        )
        for name, found in after.items()
    ]
    _tell(config, rows, json=json)


def sync_once(
    config: Config, vms: list[VmConfig], *, connect_first: bool = True, wait: float = 0.0, json: bool = False
) -> None:
    """One pass over some VMs, and the table of what became of each. Raises `VmError` for a failure.

    Without ``connect_first`` systemd is not asked, and nothing is restarted.
    """
    manager = connect() if connect_first else None
    ours = Session.for_one_pass(config)
    ours.take_over(manager)
    settled = settled_look(config, ours.observer, vms, manager, time.monotonic() + wait)
    look = ours.pacer.hold_back(settled)
    ours.rollout.forget_ended(look)
    sealed = ours.sealer.seal_due(look)
    unsealed = {decision.vm.name for decision in look.decisions if decision.seal is not None}.difference(
        sealed
    )
    Reporter(ours.audit).report(look.decisions)
    outcome: dict[str, State] = {}
    if manager is not None:
        # Those that come after others are due once these are restarted, which another look tells.
        while due := [each for each in _due(look) if each not in outcome]:
            outcome |= ours.rollout.restart_all(due, manager)
            look = ours.pacer.hold_back(ours.observer.look_or_refuse(vms, manager))
        manager.close()
    states = {decision.vm.name: decision.state for decision in look.decisions} | outcome
    reasons = {decision.vm.name: "; ".join(decision.reasons) for decision in look.decisions}
    for name, state in states.items():
        attempt = ours.store.attempt(name) if state in {State.FAILED, State.HALTED} else None
        reasons[name] = attempt.reason if attempt is not None else reasons[name]
    shown = {name: State.IN_STEP if state is State.SEAL_DUE else state for name, state in states.items()}
    for name in unsealed:
        shown[name], reasons[name] = (
            State.REFUSED,
            "its values could not be sealed: see the message about it",
        )
    rows = [
        SyncRow(vm=name, sealed=name in sealed, state=state, reason=reasons[name])
        for name, state in shown.items()
    ]
    _tell(config, rows, json=json)


def _tell(config: Config, rows: list[SyncRow], *, json: bool) -> None:
    if json:
        print_json(rows)
    else:
        print_table(
            ["VM", "SEALED", "STATE", "REASON"],
            [[row.vm, "yes" if row.sealed else "", row.state.value, row.reason] for row in rows],
        )
    fail_for_bad(config, ((config.vm(row.vm), row.state, row.reason) for row in rows))


def _due(look: Look) -> list[str]:
    return [decision.vm.name for decision in look.decisions if decision.needs_rollout]


def settled_look(
    config: Config, observer: Observer, vms: list[VmConfig], manager: SystemManager | None, deadline: float
) -> Look:
    """A look at a source that is quiet and, until the deadline, complete. Raises `SourceError`.

    A source that the unit hides is not waited for: it cannot come.
    """
    settler = Settler(config.source.quiet_seconds, config.source.quiet_max_seconds)
    while True:
        now = time.monotonic()
        try:
            look = observer.look(vms, manager)
        except SourceError as error:
            # The deadline may be no number, and then nothing is waited for.
            if isinstance(error, HiddenSourceError) or not now < deadline:
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
