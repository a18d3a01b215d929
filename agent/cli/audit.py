# SPDX-License-Identifier: MIT
"""``credferry audit``: the rotations, as the journal tells them, and whether the journal may be believed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from credferry.agent.cli.common import DEFAULT_CONFIG, ConfigOption, JsonOption
from credferry.agent.cli.selection import VmOption, named
from credferry.agent.cli.times import UtcOption, parse_time, zone


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @app.command("audit")
    def audit(
        vms: Annotated[
            list[str] | None,
            typer.Argument(help="Only these VMs; names, or patterns such as 'web*'.", metavar="VM"),
        ] = None,
        *,
        config: ConfigOption = DEFAULT_CONFIG,
        vm: VmOption = None,
        credential: Annotated[
            str | None,
            typer.Option("--credential", help="Only changes of this credential.", metavar="NAME"),
        ] = None,
        since: Annotated[
            str | None,
            typer.Option(
                "--since",
                "-S",
                help="Only from this time on; see systemd.time(7), or a time as shown here.",
                metavar="TIME",
            ),
        ] = None,
        until: Annotated[
            str | None,
            typer.Option(
                "--until",
                "-U",
                help="Only up to this time; see systemd.time(7), or a time as shown here.",
                metavar="TIME",
            ),
        ] = None,
        directory: Annotated[
            Path | None,
            typer.Option("--directory", "-D", help="Read the journal in this directory.", metavar="DIR"),
        ] = None,
        records: Annotated[bool, typer.Option("--records", help="List the single records.")] = False,
        periods: Annotated[
            bool,
            typer.Option("--periods", help="List which VM ran which fingerprint, and when."),
        ] = False,
        follow: Annotated[bool, typer.Option("--follow", "-f", help="List records as they arrive.")] = False,
        verify: Annotated[
            bool, typer.Option("--verify", help="Check that no record was removed, edited, added or moved.")
        ] = False,
        html: Annotated[
            Path | None,
            typer.Option("--html", help="Write one page with a timeline per VM.", metavar="FILE"),
        ] = None,
        utc: UtcOption = False,
        json: JsonOption = False,
        csv: Annotated[bool, typer.Option("--csv", help="Print CSV instead of a table.")] = False,
    ) -> None:
        """Show what happened, from the journal alone: published, sealed, restarted, launched."""
        from credferry.agent.cli import (  # noqa: PLC0415 (libsystemd is of no use to other verbs)
            audit_views,
        )

        names = tuple(named(vms, vm))
        kinds = {"--records": records, "--periods": periods, "--follow": follow, "--verify": verify}
        kind = _only({**kinds, "--html": html is not None})
        form = _only({"--json": json, "--csv": csv})
        unfit = {"--verify": names or credential or since or until or csv, "--html": json or csv}
        if unfit.get(kind):
            raise typer.BadParameter(
                "cannot be combined with options that select records or with another output format",
                param_hint=kind,
            )
        views = audit_views.Views(
            config,
            directory,
            form.removeprefix("--"),
            names,
            credential,
            parse_time(since, "--since"),
            parse_time(until, "--until"),
            zone(utc=utc),
        )
        match kind:
            case "--verify":
                views.verify()
            case "--follow":
                views.follow()
            case "--records":
                views.records()
            case "--periods":
                views.periods()
            case "--html" if html is not None:
                views.html(html)
            case _:
                views.story()


def _only(options: dict[str, bool]) -> str:
    """The one option that is set, or nothing. Raises `typer.BadParameter` for more than one."""
    given = [option for option, is_set in options.items() if is_set]
    if given[1:]:
        raise typer.BadParameter(f"cannot be combined with {given[1]}", param_hint=given[0])
    return given[0] if given else ""
