# SPDX-License-Identifier: MIT
"""What verbs have in common: their options, tables, and JSON."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from credferry.agent.config.choosing import chosen
from credferry.agent.config.loading import load
from credferry.agent.config.model import DEFAULT_PATH, PATH_VARIABLE, Config, VmConfig
from credferry.agent.errors import AgentError, BusError, VmError
from credferry.agent.printable import json_text
from credferry.agent.reconcile.decision import State
from credferry.agent.reconcile.observer import Look, Observer
from credferry.agent.rollout.pacing import RestartPolicyGate
from credferry.agent.store.opening import open_store_untouched
from credferry.agent.systemd.units import HEALTH_UNIT, PUSH_UNIT

if TYPE_CHECKING:
    from credferry.agent.audit.events import Order
    from credferry.agent.control.client import RemoteAgent
    from credferry.agent.systemd.manager import SystemBus
    from credferry.agent.systemd.units import SystemManager

ConfigOption = Annotated[
    Path,
    typer.Option("--config", "-c", envvar=PATH_VARIABLE, help="Configuration file.", metavar="FILE"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
ReasonOption = Annotated[
    str,
    typer.Option("--reason", help="The reason, for the journal. Do not put a secret here.", metavar="TEXT"),
]
DEFAULT_CONFIG = DEFAULT_PATH


def connect(on_job: Callable[[str], None] = lambda _: None) -> SystemBus:
    """Systemd on the system bus. Raises `BusError`."""
    # Imported late: GObject's introspection takes most of a short verb's time.
    from credferry.agent.systemd.manager import SystemBus  # noqa: PLC0415 (see above)

    return SystemBus(on_job)


def find_agent(config: Config | None) -> RemoteAgent | None:
    """The running agent; None if none runs. Raises as `credferry.agent.control.client.find_agent` does."""
    from credferry.agent.control import (  # noqa: PLC0415 (loads GObject's introspection, see above)
        client as remote,
    )

    return remote.find_agent(config)


def running_agent(config: Config | None) -> RemoteAgent | None:
    """The running agent, for a verb that only reads; None also if the agent cannot be asked."""
    with suppress(AgentError, BusError):
        return find_agent(config)
    return None


def require_agent(config: Config, order: Order, vms: Sequence[VmConfig]) -> RemoteAgent:
    """The running agent, for an order on VMs. Raises `AgentError` and `BusError`."""
    refused = f"{order.value} was not done for {', '.join(vm.name for vm in vms)}"
    hint = "start it with: systemctl start credferry.service; then give the order again"
    return require_running(config, refused, hint)


def require_running(config: Config | None, refused: str, hint: str) -> RemoteAgent:
    """The running agent; ``refused`` and ``hint`` are for an error. Raises `AgentError` and `BusError`."""
    agent = find_agent(config)
    if agent is None:
        manager = connect()
        try:
            require_no_agent(manager, refused)
        finally:
            manager.close()
        raise AgentError(f"{refused}: the agent does not run", hint=hint)
    return agent


def require_no_agent(manager: SystemManager, refused: str) -> None:
    """Raises `AgentError` if the agent runs, although it is not on the bus."""
    if is_active(manager):
        raise AgentError(
            f"{refused}: the agent runs, but it is not on the bus",
            hint="see why with: credferry doctor",
        )


def is_active(manager: SystemManager) -> bool:
    """Whether the agent's unit is active, according to systemd, also while it reloads."""
    return manager.unit("credferry.service").active in {"active", "reloading"}


def look_untouched(path: Path, names: Sequence[str] | None) -> tuple[Config, Look]:
    """Look at the VMs asked for, and change nothing.

    Raises `ConfigurationError`, `KeyFileError`, `SourceError` and `BusError`.
    """
    config = load(path)
    vms = chosen(config, names)
    manager = connect()
    try:
        store = open_store_untouched(config)
        look = Observer(config, store).look(vms, manager)
        return config, RestartPolicyGate(config, store, is_single_look=True).hold_back(look)
    finally:
        manager.close()


def print_json(document: Any) -> None:  # noqa: ANN401 (whatever JSON takes, and records of `credferry.agent.cli.documents`)
    """Print a JSON document on standard output."""
    sys.stdout.write(f"{json_text(msgspec.to_builtins(document), indent=2)}\n")


def fail_for_bad(config: Config, outcome: Iterable[tuple[VmConfig, State, str]]) -> None:
    """End the verb with one line about the first VM whose state, with its reason, is a failure.

    The table tells of all of them. Raises `VmError` where there is one.
    """
    bad = [each for each in outcome if each[1] in REMEDIES]
    if not bad:
        return
    vm, state, reason = bad[0]
    raise VmError(
        f"{config.file}: vms.{vm.name}: {state.value}: {reason}",
        hint=REMEDIES[state].format(vm=vm.name, unit=failed_unit(vm, reason))
        + (f"; and {len(bad) - 1} more like this, see credferry status" if bad[1:] else ""),
    )


def failed_unit(vm: VmConfig, reason: str) -> str:
    """The unit whose journal tells of a failure: the health check or the push, if the reason names it."""
    helpers = (each.format(vm=vm.name) for each in (HEALTH_UNIT, PUSH_UNIT))
    return next((each for each in helpers if each in reason), vm.unit)


REMEDIES = {
    State.REFUSED: "correct this; until then the VM keeps its previous secrets",
    State.FAILED: "see journalctl -u {unit}; then run credferry retry {vm}, or wait for the next change",
    State.HALTED: "correct and retry the VM that failed; or run credferry retry {vm} for this VM alone",
}
"""What is to be done about each state that is a failure."""
