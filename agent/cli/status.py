# SPDX-License-Identifier: MIT
"""``credferry status``: per VM, what is published, sealed and running, since when, and why not in step."""

from __future__ import annotations

import os
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
import typer

from credferry.agent.cli.common import (
    DEFAULT_CONFIG,
    REMEDIES,
    ConfigOption,
    JsonOption,
    VmOption,
    chosen,
    connect,
    fail_for_bad,
    look_untouched,
    print_json,
    running_agent,
)
from credferry.agent.cli.documents import Generation, Published, StatusRow, rfc3339
from credferry.agent.cli.status_views import print_rows, watched
from credferry.agent.config.loading import load
from credferry.agent.config.model import Config
from credferry.agent.errors import CredferryError, KeyFileError, UsageError, VmError, describe
from credferry.agent.reconcile.decision import Decision, State
from credferry.agent.reconcile.desired import Desired, Refused
from credferry.agent.reconcile.observed import Observed
from credferry.agent.reconcile.observer import Observer
from credferry.agent.reconcile.status import standing
from credferry.agent.sealing.keys import CredentialKey
from credferry.agent.store.generations import Store
from credferry.agent.store.opening import open_store_untouched

if TYPE_CHECKING:
    from credferry.agent.control.client import RemoteAgent


def status_row(vm: dict[str, Any]) -> StatusRow:
    """A VM's properties as ``credferry status`` tells them; what is published, the agent shows nobody."""
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
        reasons=vm["Reasons"],
    )


_WATCH_SECONDS = 1.0


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @app.command("status")
    def status(
        config: ConfigOption = DEFAULT_CONFIG,
        vm: VmOption = None,
        json: JsonOption = False,
        watch: Annotated[
            bool, typer.Option("--watch", "-w", help="Update the table every second, until Ctrl-C.")
        ] = False,
    ) -> None:
        """Show for each VM what is published, sealed and running, and whether they are in step."""
        if watch:
            _watch(config, vm, json=json)
            return
        rows, problem = _rows(config, vm)
        if json:
            print_json(rows)
        else:
            print_rows(rows)
        if problem is not None:
            raise problem
        _fail_for_bad(config, rows)


def _rows(file: Path, names: list[str] | None) -> tuple[list[StatusRow], KeyFileError | None]:
    """The rows, and what is wrong with the host's key, if anything.

    By a look of this process; by the running agent's last one for users who may not look, and where the key
    cannot be used. Without an agent, what can be seen without the key is shown.
    """
    try:
        loaded, look = look_untouched(file, names)
        _require_key(loaded)
    except KeyFileError as error:
        if os.geteuid() == 0:
            agent = running_agent(load(file))
            if agent is None:
                return _without_key(file, names, error), error
            with agent:
                return _by_agent(agent, names), error
        return _by_any_agent(names, error), None
    except CredferryError as error:
        return _by_any_agent(names, error), None
    store = open_store_untouched(loaded)
    return [_row(*pair, store) for pair in zip(look.observed, look.decisions, strict=True)], None


def _require_key(config: Config) -> None:
    """Raises `KeyFileError` where something is sealed, and there is no key any more that could open it."""
    store = open_store_untouched(config)
    if not Path(config.host_key).exists() and any(store.current_number(vm) for vm in config.vms):
        raise KeyFileError(
            f"{config.host_key}: does not exist, and no VM can start without it",
            hint="restore it from a backup; or make a new one and seal everything again: credferry sync",
        )


def _without_key(file: Path, names: list[str] | None, error: KeyFileError) -> list[StatusRow]:
    """What can be seen without the host's key: units, and the numbers of generations."""
    config = load(file)
    store = Store(Path(config.state_directory), CredentialKey(os.urandom(32)))
    manager = connect()
    try:
        refused = Refused((describe(error),))
        look = Observer(config, store).look_at(refused, chosen(config, names), manager)
    finally:
        manager.close()
    rows = [_row(*pair, store) for pair in zip(look.observed, look.decisions, strict=True)]
    sealed = {row.vm: store.current_number(row.vm) for row in rows}
    return [
        msgspec.structs.replace(
            row, sealed=Generation(generation=sealed[row.vm], digest=None) if sealed[row.vm] else None
        )
        for row in rows
    ]


def _by_any_agent(names: list[str] | None, error: CredferryError) -> list[StatusRow]:
    """By whichever agent runs, for a user who is not root. Raises the error where there is none."""
    agent = running_agent(None) if os.geteuid() != 0 else None
    if agent is None:
        raise error
    with agent:
        return _by_agent(agent, names)


def _by_agent(agent: RemoteAgent, names: list[str] | None) -> list[StatusRow]:

    rows = [status_row(each) for each in agent.vms()]
    unknown = set(names or ()) - {row.vm for row in rows}
    if unknown:
        raise VmError(f"the agent has no VM {min(unknown)!r}", hint="see: credferry status")
    return [row for row in rows if not names or row.vm in names]


def _fail_for_bad(file: Path, rows: list[StatusRow]) -> None:
    outcome = [(row, "; ".join(row.reasons)) for row in rows]
    try:
        loaded = load(file)
    except CredferryError:  # it may not be ours to read
        bad = [row for row, _ in outcome if row.state in REMEDIES]
        if bad:
            raise VmError(
                f"{bad[0].vm}: {bad[0].state.value}: {'; '.join(bad[0].reasons)}",
                hint="see: credferry audit",
            ) from None
        return
    fail_for_bad(loaded, ((loaded.vm(row.vm), row.state, reason) for row, reason in outcome))


def _row(observed: Observed, decision: Decision, store: Store) -> StatusRow:
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
        reasons=list(now.reasons),
    )


def _system(text: str) -> Literal["current", "older"] | None:
    match text:
        case "current" | "older":
            return text
        case _:
            return None


def _watch(file: Path, names: list[str] | None, *, json: bool) -> None:
    if json or not sys.stdout.isatty():
        raise UsageError(
            "--watch is for a terminal",
            hint="use --json for programs, or follow the agent's signals on the bus",
        )
    from rich.live import Live  # noqa: PLC0415 (takes longer than what it is not needed for)

    # One connection while it lasts; without an agent each look is our own.
    agent = running_agent(None)
    try:
        with Live(_table([], ""), screen=True, auto_refresh=False) as live:
            while True:
                try:
                    rows, problem = (_by_agent(agent, names), None) if agent else _rows(file, names)
                    note = describe(problem) if problem is not None else ""
                except CredferryError as error:
                    rows, note = [], describe(error)
                    if agent is not None:
                        agent.close()
                    agent = running_agent(None)
                live.update(_table(rows, note), refresh=True)
                time.sleep(_WATCH_SECONDS)
    except KeyboardInterrupt:
        pass
    finally:
        if agent is not None:
            agent.close()


def _table(rows: list[StatusRow], note: str) -> Any:  # noqa: ANN401 (rich is not loaded where it is not needed)
    return watched(rows, note, datetime.now().astimezone())
