# SPDX-License-Identifier: MIT
"""``credferry status``: per VM, what is published, sealed and running, since when, and why not in step."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from credferry.agent.cli import status_rows as source
from credferry.agent.cli import status_views as views
from credferry.agent.cli.common import (
    DEFAULT_CONFIG,
    REMEDIES,
    ConfigOption,
    JsonOption,
    fail_for_bad,
    print_json,
    running_agent,
)
from credferry.agent.cli.selection import SomeVmArguments, StateOption, VmOption, named, states
from credferry.agent.cli.terminal import draw, screen, warn
from credferry.agent.cli.times import UtcOption, zone
from credferry.agent.config.loading import load
from credferry.agent.errors import CredferryError, Interrupted, UsageError, VmError, describe
from credferry.agent.reconcile.decision import State

if TYPE_CHECKING:
    from datetime import tzinfo

    from credferry.agent.cli.documents import StatusRow
    from credferry.agent.control.client import RemoteAgent

_WATCH_SECONDS = 1.0
_MARKED_LOOKS = 10
"""For so many looks a changed row is marked."""


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @app.command("status")
    def status(
        vms: SomeVmArguments = None,
        *,
        config: ConfigOption = DEFAULT_CONFIG,
        vm: VmOption = None,
        state: StateOption = None,
        utc: UtcOption = False,
        json: JsonOption = False,
        watch: Annotated[
            bool, typer.Option("--watch", "-w", help="Update the table every second, until Ctrl-C.")
        ] = False,
    ) -> None:
        """Show for each VM what is published, sealed and running, and whether they are in step.

        What needs attention comes first. Ends with status 1 if a VM is failed, refused or halted.
        """
        names, wanted = named(vms, vm), states(state)
        if watch:
            _require_terminal(json=json)
            _watch(config, names, wanted, zone(utc=utc))
            return
        found = source.find(config, names)
        rows = _in(found.rows, wanted)
        if found.warning and not json:  # in JSON, `agent` says it
            warn(found.warning)
        if json:
            print_json(rows)
        else:
            views.print_rows(rows, zone(utc=utc))
        if found.problem is not None:
            raise found.problem
        _fail_for_bad(config, rows)


def _in(rows: Iterable[StatusRow], wanted: frozenset[State]) -> list[StatusRow]:
    """The rows in one of these states; all if there are none. Held VMs are held in any state."""
    return [row for row in rows if not wanted or row.state in wanted or (row.held and State.HELD in wanted)]


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


def _require_terminal(*, json: bool) -> None:
    if json or not sys.stdout.isatty():
        raise UsageError(
            "--watch is for a terminal",
            hint="use --json for programs, or follow the agent's signals on the bus",
        )


def _watch(file: Path, names: list[str], wanted: frozenset[State], where: tzinfo | None) -> None:
    # One connection while it lasts; without an agent each look is our own.
    agent = running_agent(None)
    before: dict[str, object] = {}
    marks: dict[str, int] = {}
    try:
        with screen():
            while True:
                rows, note, agent = _look(agent, file, names)
                now = {row.vm: views.key(row) for row in rows}
                marks = {vm: looks - 1 for vm, looks in marks.items() if looks > 1}
                marks |= {vm: _MARKED_LOOKS for vm, key in now.items() if before.get(vm, key) != key}
                before |= now
                _draw(_in(rows, wanted), note, where, marks)
                time.sleep(_WATCH_SECONDS)
    except Interrupted:
        pass
    finally:
        if agent is not None:
            agent.close()


def _look(
    agent: RemoteAgent | None, file: Path, names: list[str]
) -> tuple[list[StatusRow], str, RemoteAgent | None]:
    """The rows, a note about them, and the agent to ask next time."""
    try:
        if agent is not None:
            return source.by_agent(agent, names), "", agent
        found = source.find(file, names)
        return found.rows, found.warning, running_agent(None)
    except CredferryError as error:
        if agent is not None:
            agent.close()
        return [], describe(error), running_agent(None)


def _draw(rows: list[StatusRow], note: str, where: tzinfo | None, changed: dict[str, int]) -> None:
    size = shutil.get_terminal_size()
    head = [(f"{datetime.now().astimezone(where):%H:%M:%S %Z}  {views.summary(rows)}", "bold")]
    if note:
        head.append((note, "yellow"))
    room = size.lines - sum(max(1, -(-len(line) // size.columns)) for line, _ in head) - 1
    draw([*head, *views.fitted(rows, size.columns, room, where, changed)])
