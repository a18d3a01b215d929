# SPDX-License-Identifier: MIT
"""``credferry fleet``: groups of the fleet, their limits, slots and halts, on all hosts.

The verbs ask the engine themselves, with the files that [fleet] names: they work while the agent is stopped.
"""

from __future__ import annotations

import sys
import time
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from credferry.agent.cli import fleet_views as views
from credferry.agent.cli.common import DEFAULT_CONFIG, ConfigOption, JsonOption, ReasonOption, print_json
from credferry.agent.cli.fleet_engine import (
    OpenFleet,
    applied,
    forget_cluster,
    open_fleet,
    recorded,
    require_group,
)
from credferry.agent.cli.terminal import draw, say, screen
from credferry.agent.cli.times import UtcOption, zone
from credferry.agent.errors import CredferryError, Interrupted, UsageError, describe
from credferry.agent.fleet.model import LIMIT_MAX, Halted, OfHost, Unreadable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from credferry.agent.cli.documents import FleetGroupRow

_WATCH_SECONDS = 2.0
_NAME = typer.Argument(help="The group's name.", metavar="GROUP")
GroupArgument = Annotated[str, _NAME]
NewOption = Annotated[bool, typer.Option("--new", help="The group is a new one: no host has used it yet.")]


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    verbs = typer.Typer(help="How many VMs may be down for a change, on all hosts.", no_args_is_help=True)
    app.add_typer(verbs, name="fleet")
    _register_status(verbs)
    _register_orders(verbs)
    _register_release(verbs)
    _register_forget(verbs)


def _register_status(verbs: typer.Typer) -> None:
    @verbs.command("status")
    def status(
        groups: Annotated[
            list[str] | None, typer.Argument(help="Only these groups.", metavar="GROUP")
        ] = None,
        *,
        config: ConfigOption = DEFAULT_CONFIG,
        utc: UtcOption = False,
        json: JsonOption = False,
        watch: Annotated[
            bool, typer.Option("--watch", "-w", help="Update every two seconds, until Ctrl-C.")
        ] = False,
    ) -> None:
        """Show each group: its limit, who holds its slots, why it is halted, and its hosts.

        Ends with status 1 if a group is halted, or if its limit or a slot cannot be read.
        """
        if watch and (json or not sys.stdout.isatty()):
            raise UsageError("--watch is for a terminal", hint="use --json for programs")
        fleet = open_fleet(config)
        if watch:
            _watch(fleet, groups or ())
            return
        rows = fleet.rows(groups or ())
        if json:
            print_json(rows)
        else:
            views.print_rows(rows, zone(utc=utc))
        _fail_for_bad(config, rows)


def _register_orders(verbs: typer.Typer) -> None:
    @verbs.command("limit")
    def limit(
        group: GroupArgument,
        number: Annotated[
            int, typer.Argument(help="How many of its VMs may be down at a time.", metavar="N")
        ],
        *,
        config: ConfigOption = DEFAULT_CONFIG,
        is_new: NewOption = False,
        reason: ReasonOption = "",
    ) -> None:
        """Set how many VMs of a group may be down for a change at a time: 1 unless set.

        A lower limit takes no slot away. The group gives none until enough were given back.
        """
        if not 1 <= number <= LIMIT_MAX:
            raise UsageError(f"{number}: not a limit", hint=f"give a number from 1 to {LIMIT_MAX}")
        fleet = open_fleet(config)
        require_group(fleet, group, is_new=is_new)
        with recorded(fleet, "limit", group, reason, detail=str(number)):
            applied(fleet.engine.limit(group, number))
        say(f"{group}: the limit is {number}")

    @verbs.command("halt")
    def halt(
        group: GroupArgument,
        *,
        config: ConfigOption = DEFAULT_CONFIG,
        is_new: NewOption = False,
        reason: ReasonOption = "",
    ) -> None:
        """Halt a group: nothing in it is restarted for a change on any host, until it is resumed.

        The other hosts show the reason. Restarts and pushes that are under way are carried to their end.
        """
        fleet = open_fleet(config)
        require_group(fleet, group, is_new=is_new)
        with recorded(fleet, "halt", group, reason) as run:
            found = fleet.engine.halt(group, fleet.operator, run, reason or "halted by an operator")
            changed = 0 if isinstance(found, Halted) else applied(found)
        if isinstance(found, Halted):
            say(f"{group}: nothing: was halted already: {found.halt.text}")
        elif not changed:
            say(f"{group}: nothing: was halted already from this host")
        else:
            say(f"{group}: halted until: credferry fleet resume {group}")

    @verbs.command("resume")
    def resume(
        group: GroupArgument, *, config: ConfigOption = DEFAULT_CONFIG, reason: ReasonOption = ""
    ) -> None:
        """End the halt of a group, whoever halted it.

        The VM that failed keeps its slot until it is up. If another VM has failed as well, it halts the
        group within a minute: make it well, or resume the group again. See credferry retry on its host.
        """
        fleet = open_fleet(config)
        require_group(fleet, group, is_new=False)
        with recorded(fleet, "resume", group, reason):
            changed = applied(fleet.engine.resume(group))
        say(f"{group}: {'resumed' if changed else 'nothing: was not halted'}")


def _register_release(verbs: typer.Typer) -> None:
    @verbs.command("release")
    def release(
        host: Annotated[
            str | None, typer.Argument(help="The name of a dead host in the fleet.", metavar="HOST")
        ] = None,
        *,
        config: ConfigOption = DEFAULT_CONFIG,
        group: Annotated[
            str | None, typer.Option("--group", help="Only slots of this group.", metavar="GROUP")
        ] = None,
        vm: Annotated[str, typer.Option("--vm", help="Only the slot of this VM.", metavar="VM")] = "",
        is_unreadable: Annotated[
            bool, typer.Option("--unreadable", help="Instead of a host's: slots that cannot be read.")
        ] = False,
        is_forced: Annotated[
            bool, typer.Option("--force", help="Also if the host's agent has reported lately.")
        ] = False,
        reason: ReasonOption = "",
    ) -> None:
        """Free the slots of a dead host, or slots that cannot be read.

        Make sure that the host is off: a VM of it that is still down counts no more.
        """
        if (host is None) is not is_unreadable or (is_unreadable and (vm or group is None)):
            raise UsageError(
                "release needs a host; or --unreadable with --group, and no host",
                hint="write: credferry fleet release HOST, with the host's name in the fleet",
            )
        fleet = open_fleet(config)
        what = Unreadable() if host is None else OfHost(host, vm)
        named = host or "unreadable slots"
        found = fleet.groups_to_release(what, group, is_forced=is_forced)
        changed = 0
        for each in found:
            with recorded(fleet, "release", each, reason, detail=f"{named} {vm}".rstrip()):
                changed += applied(fleet.engine.free(each, what))
        said = f"freed {changed} slot{'' if changed == 1 else 's'} of {', '.join(found)}"
        say(f"{named}: {said if changed else 'nothing: holds no slot'}")


def _register_forget(verbs: typer.Typer) -> None:
    @verbs.command("forget-cluster")
    def forget(*, config: ConfigOption = DEFAULT_CONFIG, reason: ReasonOption = "") -> None:
        """Let this host use an etcd that was restored, made anew, or put in the place of the former one.

        Such an etcd may have lost slots. First make sure on all hosts that no VM is down for a change.
        """
        if forget_cluster(open_fleet(config), reason):
            say("forgotten: this host keeps to the etcd cluster that answers next")
        else:
            say("nothing: this host keeps to no etcd cluster yet")


def _watch(fleet: OpenFleet, groups: Sequence[str]) -> None:
    try:
        with screen():
            while True:
                head = f"{datetime.now().astimezone():%H:%M:%S %Z}"
                try:
                    shown = views.screen_lines(fleet.rows(groups), head)
                except CredferryError as error:
                    shown = [(head, "bold"), (describe(error), "red")]
                draw(shown)
                time.sleep(_WATCH_SECONDS)
    except Interrupted:
        pass


def _fail_for_bad(file: Path, rows: Sequence[FleetGroupRow]) -> None:
    for row in rows:
        if row.halt is not None:
            raise CredferryError(
                f"{file}: group {row.group} is halted: {row.halt.why}",
                hint=f"repair the VM that failed, then: credferry fleet resume {row.group}",
            )
        if row.limit is None:
            raise CredferryError(
                f"{file}: group {row.group}: its limit cannot be read, so no VM gets a slot",
                hint=f"set it: credferry fleet limit {row.group} N",
            )
        if any(each.host is None for each in row.held):
            raise CredferryError(
                f"{file}: group {row.group}: a slot cannot be read, and counts as held",
                hint=f"free it: credferry fleet release --unreadable --group {row.group}",
            )
