# SPDX-License-Identifier: MIT
"""``credferry sync``: the agent looks now. If no agent runs, ``credferry-seal.service`` seals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from credferry.agent.cli.common import (
    DEFAULT_CONFIG,
    ConfigOption,
    JsonOption,
    connect,
    fail_for_bad,
    find_agent,
    look_untouched,
    print_json,
    require_no_agent,
)
from credferry.agent.cli.documents import SyncRow
from credferry.agent.cli.selection import SomeVmArguments, VmOption, named
from credferry.agent.cli.tables import print_table
from credferry.agent.cli.terminal import Progress
from credferry.agent.config.choosing import chosen
from credferry.agent.config.loading import load
from credferry.agent.config.model import Config, VmConfig
from credferry.agent.errors import (
    AgentError,
    ConfigurationError,
    CredferryError,
    ExitStatus,
    KeyFileError,
    SealError,
    SourceError,
    StoreError,
    UsageError,
)
from credferry.agent.reconcile.decision import Decision, State
from credferry.agent.store.opening import open_store_untouched
from credferry.agent.systemd.units import DONE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from credferry.agent.control.client import RemoteAgent

_UNIT = "credferry-seal.service"
_UNIT_ERRORS: tuple[type[CredferryError], ...] = (
    *(SealError, SourceError, StoreError, KeyFileError, ConfigurationError),
)
"""Errors that the unit ends with. The verb ends with the same exit status."""


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @app.command("sync")
    def sync(
        vms: SomeVmArguments = None,
        *,
        config: ConfigOption = DEFAULT_CONFIG,
        vm: VmOption = None,
        json: JsonOption = False,
    ) -> None:
        """Make the agent check now, seal, and restart what is due. If no agent runs, only seal."""
        loaded = load(config)
        sync_now(loaded, chosen(loaded, named(vms, vm)), json=json)


def sync_now(config: Config, vms: list[VmConfig], *, json: bool = False) -> None:
    """Have the agent look now, or the unit that seals if no agent runs. Raises `VmError` for a failure."""
    agent = find_agent(config)
    if agent is None:
        _sync_by_unit(config, vms, json=json)
        return
    with agent:
        sync_by_agent(agent, config, vms, json=json)


def sync_by_agent(
    agent: RemoteAgent,
    config: Config,
    vms: list[VmConfig],
    *,
    did: Mapping[str, str] | None = None,
    json: bool = False,
) -> None:
    """Have the running agent look now, and tell what became of some VMs. Raises `VmError` for a failure.

    ``did`` says what an order before it has changed, by VM.
    """
    before = {vm.name: agent.vm(vm.name)["Sealed"] for vm in vms}
    with Progress() as progress:
        after = agent.settle(list(before), progress.tell)
    rows = [
        SyncRow(
            vm=name,
            sealed=found["Sealed"] != before[name],
            state=State(found["State"]),
            reason="; ".join(found["Reasons"]),
            did=did[name] if did is not None else None,
        )
        for name, found in after.items()
    ]
    _tell(config, rows, json=json)


def _sync_by_unit(config: Config, vms: list[VmConfig], *, json: bool) -> None:
    """Have ``credferry-seal.service`` seal, and tell what became of some VMs. Restarts nothing.

    Raises `VmError` for a VM that is refused, and an error with the unit's exit status if the unit fails.
    """
    if config.file.resolve() != DEFAULT_CONFIG.resolve():
        raise UsageError(
            f"no agent runs, and {_UNIT} seals for {DEFAULT_CONFIG} only",
            hint=f"seal with: credferry agent --once --config {config.file}",
        )
    names = [vm.name for vm in vms]
    look_untouched(config.file, names)  # without a source or a usable key, the unit could seal nothing
    store = open_store_untouched(config)
    before = {name: store.current_number(name) for name in names}
    manager = connect()
    try:
        require_no_agent(manager, "sync was not done")
        result = manager.restart(_UNIT)
        unit = manager.unit(_UNIT)
    finally:
        manager.close()
    _, look = look_untouched(config.file, names)
    failed = unit.exit_status if unit.result == "exit-code" else None
    if result != DONE and failed != ExitStatus.FAILED:
        raise _unit_error(result, failed)
    now = open_store_untouched(config)  # with the host's key, which the unit may have made
    rows = [
        SyncRow(
            vm=decision.vm.name,
            sealed=now.current_number(decision.vm.name) != before[decision.vm.name],
            **_standing(decision, has_failed=failed is not None),
        )
        for decision in look.decisions
    ]
    _tell(config, rows, json=json)


def _standing(decision: Decision, *, has_failed: bool) -> dict[str, Any]:
    """State and reason of a VM after the unit has sealed."""
    if decision.seal is not None and has_failed:
        return {
            "state": State.REFUSED,
            "reason": f"its values could not be sealed: see journalctl -u {_UNIT}",
        }
    reasons = list(decision.reasons)
    if decision.needs_rollout:
        reasons.append(
            "no agent runs that could restart it or push to it: systemctl start credferry.service"
        )
    return {"state": decision.state, "reason": "; ".join(reasons)}


def _unit_error(result: str, status: int | None) -> CredferryError:
    how = f"its job ended with {result!r}" if status is None else f"exit status {status}"
    kind = next((each for each in _UNIT_ERRORS if each.status == status), AgentError)
    return kind(f"{_UNIT} failed: {how}", hint=f"see: journalctl -u {_UNIT} -n 20")


def _tell(config: Config, rows: list[SyncRow], *, json: bool) -> None:
    if json:
        print_json(rows)
    else:
        print_table(
            ["VM", "DID", "SEALED", "STATE", "REASON"]
            if any(row.did for row in rows)
            else ["VM", "SEALED", "STATE", "REASON"],
            [
                [row.vm, *filter(None, [row.did]), "yes" if row.sealed else "", row.state.value, row.reason]
                for row in rows
            ],
        )
    fail_for_bad(config, ((config.vm(row.vm), row.state, row.reason) for row in rows))
