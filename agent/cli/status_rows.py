# SPDX-License-Identifier: MIT
"""Where ``credferry status`` has its rows from: a look of its own, or the running agent's last look."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from credferry.agent.cli.common import connect, find_agent, is_active, look_untouched, running_agent
from credferry.agent.cli.documents import Generation, Published, StatusRow, rfc3339
from credferry.agent.cli.fleet_waits import with_waits
from credferry.agent.config.choosing import chosen, fits, is_pattern
from credferry.agent.config.loading import load
from credferry.agent.errors import (
    AgentError,
    BusError,
    ConfigurationError,
    CredferryError,
    KeyFileError,
    VmError,
    describe,
)
from credferry.agent.reconcile.decision import Decision, State
from credferry.agent.reconcile.desired import Desired, Refused
from credferry.agent.reconcile.observed import Observed
from credferry.agent.reconcile.observer import Look, Observer
from credferry.agent.reconcile.status import Arrival, standing
from credferry.agent.sealing.keys import CredentialKey
from credferry.agent.store.generations import Store
from credferry.agent.store.opening import open_store_untouched
from credferry.agent.store.records import Way

if TYPE_CHECKING:
    from credferry.agent.config.model import Config
    from credferry.agent.control.client import RemoteAgent

_AGENT = "credferry.service"
NO_AGENT = (
    "the agent does not run: nothing is sealed, and no VM is restarted: "
    f"start it with: systemctl start {_AGENT}"
)


@dataclass(frozen=True, slots=True)
class Found:
    """The rows, what an operator must know before reading them, and the error to end with, if any."""

    rows: list[StatusRow]
    warning: str = ""
    problem: CredferryError | None = None


def find(file: Path, names: list[str]) -> Found:
    """The rows of the VMs asked for.

    This process looks at the VMs. If its user may not look, or the configuration or the key cannot be used,
    the rows show the running agent's last look. Without an agent, they show what needs no key. Raises an
    error if nothing can be shown.
    """
    is_root = os.geteuid() == 0
    try:
        loaded, look = look_untouched(file, names)
        _require_key(loaded)
    except ConfigurationError as error:
        if not is_root or not _is_broken(file):
            return Found(_by_any_agent(names, error))
        return _despite(file, names, error)
    except KeyFileError as error:
        return _despite(file, names, error) if is_root else Found(_by_any_agent(names, error))
    except CredferryError as error:
        return Found(_by_any_agent(names, error))
    runs, warning = agent_of(loaded)
    return Found(rows_of(loaded, look, open_store_untouched(loaded), runs), warning)


def rows_of(config: Config, look: Look, store: Store, agent: bool) -> list[StatusRow]:
    """A row for each VM of a look. ``agent``: as `agent_of` says. Asks the agent at most once."""
    pairs = zip(look.observed, look.decisions, strict=True)
    rows = [msgspec.structs.replace(row_of(*pair, store), agent=agent) for pair in pairs]
    return with_waits(config, rows)


def by_agent(agent: RemoteAgent, names: list[str]) -> list[StatusRow]:
    """The rows of an agent's last look. Raises `VmError` for a VM that the agent does not know."""
    rows = [_row_of_agent(each) for each in agent.vms()]
    known = {row.vm for row in rows}
    for name in names:
        if not (any(fits(each, [name]) for each in known) if is_pattern(name) else name in known):
            raise VmError(f"the agent has no VM {name!r}", hint="see: credferry status")
    return [row for row in rows if fits(row.vm, names)]


def _despite(file: Path, names: list[str], error: CredferryError) -> Found:
    """What can be shown although root's own look has failed. Raises the error if that is nothing."""
    agent = running_agent(None)
    if agent is not None:
        with agent:
            warning = f"{describe(error)}; this is what the running agent says"
            return Found(by_agent(agent, names), warning, error)
    if isinstance(error, ConfigurationError):
        raise error
    return Found(_without_key(file, names, error), NO_AGENT, error)


def _is_broken(file: Path) -> bool:
    """Whether the configuration cannot be used, rather than lacking what was asked for."""
    try:
        load(file)
    except ConfigurationError:
        return True
    return False


def agent_of(config: Config) -> tuple[bool, str]:
    """Whether an agent runs, and what an operator must know of it."""
    try:
        agent = find_agent(config)
    except AgentError as error:
        return True, describe(error)
    except BusError as error:
        return False, describe(error)
    if agent is not None:
        agent.close()
        return True, ""
    manager = connect()
    try:
        if is_active(manager):
            return True, "the agent runs, but it is not on the bus: see why with: credferry doctor"
    finally:
        manager.close()
    return False, NO_AGENT


def _row_of_agent(vm: dict[str, Any]) -> StatusRow:
    """A VM's properties as a row. The agent shows nobody what is published."""
    return StatusRow(
        vm=vm["Name"],
        unit=vm["Unit"],
        unit_state=vm["UnitState"],
        state=State(vm["State"]),
        since=rfc3339(vm["Since"]),
        published=Published(digest=None, credentials={}),
        sealed=Generation(generation=vm["Sealed"], digest=None) if vm["Sealed"] else None,
        running=Generation(generation=vm["Running"], digest=None) if vm["Running"] else None,
        held=vm["Held"],
        last_result=vm["LastResult"],
        system=vm["System"] or None,
        arrived=Arrival(vm["Arrived"]) if vm["Arrived"] else None,
        next=Way(vm["Next"]) if vm["Next"] else None,
        next_reason=vm["NextReason"],
        reasons=vm["Reasons"],
    )


def _require_key(config: Config) -> None:
    """Raises `KeyFileError` where something is sealed, and there is no key any more that could open it."""
    store = open_store_untouched(config)
    if not Path(config.host_key).exists() and any(store.current_number(vm) for vm in config.vms):
        raise KeyFileError(
            f"{config.host_key}: does not exist, and no VM can start without it",
            hint="restore it from a backup; or make a new one and seal everything again: credferry sync",
        )


def _without_key(file: Path, names: list[str], error: CredferryError) -> list[StatusRow]:
    """What can be seen without the host's key: units, and the numbers of generations."""
    config = load(file)
    store = Store(Path(config.state_directory), CredentialKey(os.urandom(32)))
    manager = connect()
    try:
        refused = Refused((describe(error),))
        look = Observer(config, store).look_at(refused, chosen(config, names), manager)
    finally:
        manager.close()
    rows = [row_of(*pair, store) for pair in zip(look.observed, look.decisions, strict=True)]
    sealed = {row.vm: store.current_number(row.vm) for row in rows}
    return [
        msgspec.structs.replace(
            row,
            sealed=Generation(generation=sealed[row.vm], digest=None) if sealed[row.vm] else None,
            agent=False,
        )
        for row in rows
    ]


def _by_any_agent(names: list[str], error: CredferryError) -> list[StatusRow]:
    """By whichever agent runs, for a user who is not root. Raises the error where there is none."""
    agent = running_agent(None) if os.geteuid() != 0 else None
    if agent is None:
        raise error
    with agent:
        return by_agent(agent, names)


def row_of(observed: Observed, decision: Decision, store: Store) -> StatusRow:
    """The row of a VM from a look of this process."""
    now, sealed, runs = standing(observed, decision, store), observed.sealed, observed.runs
    wanted = observed.desired if isinstance(observed.desired, Desired) else None
    return StatusRow(
        vm=now.name,
        unit=now.unit,
        unit_state=now.unit_state,
        state=now.state,
        since=rfc3339(now.since),
        published=Published(
            digest=wanted.digest[:12] if wanted else None,
            credentials={each.name: each.fingerprint for each in wanted.entries} if wanted else {},
        ),
        sealed=Generation(generation=sealed.generation, digest=sealed.digest[:12]) if sealed else None,
        running=Generation(generation=runs.generation, digest=runs.digest[:12]) if runs else None,
        held=now.is_held,
        last_result=now.last_result,
        system=_system(now.system),
        arrived=now.arrived,
        next=now.next_way,
        next_reason=now.next_reason,
        reasons=list(now.reasons),
    )


def _system(text: str) -> Literal["current", "older"] | None:
    match text:
        case "current" | "older":
            return text
        case _:
            return None
