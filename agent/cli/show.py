# SPDX-License-Identifier: MIT
"""``credferry show``: everything about a VM: settings, credentials, wiring, state, and what happens next."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import typer

from credferry.agent.audit import history
from credferry.agent.audit.periods import periods
from credferry.agent.audit.rotations import tell
from credferry.agent.cli import status_rows
from credferry.agent.cli.audit_forms import rotation_row
from credferry.agent.cli.common import DEFAULT_CONFIG, ConfigOption, JsonOption, look_untouched, print_json
from credferry.agent.cli.documents import SecretRow, ShowRow, WiringRow, rfc3339
from credferry.agent.cli.selection import VmArguments
from credferry.agent.cli.show_views import vm_lines
from credferry.agent.cli.tables import width
from credferry.agent.cli.terminal import say, warn
from credferry.agent.cli.times import UtcOption, zone
from credferry.agent.config.choosing import chosen
from credferry.agent.config.loading import load
from credferry.agent.errors import CredferryError, describe
from credferry.agent.reconcile import aging
from credferry.agent.reconcile.decision import State
from credferry.agent.reconcile.desired import Desired
from credferry.agent.reconcile.expiry import expires
from credferry.agent.reconcile.status import steps
from credferry.agent.store.opening import open_store_untouched

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from credferry.agent.audit.rotations import Rotation
    from credferry.agent.cli.documents import StatusRow
    from credferry.agent.config.model import VmConfig
    from credferry.agent.reconcile.decision import Decision
    from credferry.agent.reconcile.observed import Observed
    from credferry.agent.store.generations import Store

_ROTATIONS = 5
_NO_SETTINGS = {"name", "unit", "credentials"}


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @app.command("show")
    def show(
        vms: VmArguments,
        *,
        config: ConfigOption = DEFAULT_CONFIG,
        utc: UtcOption = False,
        json: JsonOption = False,
    ) -> None:
        """Show all about these VMs: settings, credentials, wiring, state, and what happens next.

        A credential has a fingerprint, the time of its last change, and its end if it names one
        (certificates, JSON web tokens). No value is shown.
        """
        rows, problem = _rows(config, vms, json=json)
        if json:
            print_json(rows)
        else:
            for number, row in enumerate(rows):
                for line, style in vm_lines(row, width(), zone(utc=utc)):
                    say(line, style)
                if number + 1 < len(rows):
                    say("")
        if problem is not None:
            raise problem


def _rows(file: Path, names: list[str], *, json: bool) -> tuple[list[ShowRow], CredferryError | None]:
    """The rows, and why they say less than they could, if so. Raises an error if nothing can be shown."""
    config = load(file)
    named = chosen(config, names)
    stories = _stories()
    try:
        _, look = look_untouched(file, names)
        store = open_store_untouched(config)
    except CredferryError:
        found = status_rows.find(file, names)
        if found.warning:
            warn(found.warning)
        if os.geteuid() != 0:
            warn("only root sees credentials and what is due: run the verb as root")
        by_name = {row.vm: row for row in found.rows}
        return [_row(vm, by_name[vm.name], stories) for vm in named if vm.name in by_name], found.problem
    runs, warning = status_rows.agent_of(config)
    if warning and not json:  # in JSON, `agent` says it
        warn(warning)
    statuses = status_rows.rows_of(config, look, store, runs)
    seen = zip(statuses, look.observed, look.decisions, strict=True)
    return [_row(now.vm, status, stories, (now, decision), store) for status, now, decision in seen], None


def _row(
    vm: VmConfig,
    status: StatusRow,
    stories: Mapping[str, Sequence[Rotation]],
    seen: tuple[Observed, Decision] | None = None,
    store: Store | None = None,
) -> ShowRow:
    rotations = stories.get(vm.name, ())
    settings: dict[str, Any] = msgspec.to_builtins(vm)
    return ShowRow(
        status=status,
        settings={key: value for key, value in settings.items() if key not in _NO_SETTINGS},
        credentials=_secrets(vm, rotations, seen[0] if seen else None, store),
        wiring=_wiring(vm),
        next=steps(seen[1]) if seen and status.state is not State.WAITING else [],
        rotations=[rotation_row(each) for each in reversed(rotations[-_ROTATIONS:])],
    )


def _secrets(
    vm: VmConfig, rotations: Sequence[Rotation], observed: Observed | None, store: Store | None
) -> list[SecretRow]:
    wanted = observed.desired if observed is not None else None
    values = wanted.values if isinstance(wanted, Desired) else {}
    published = (
        {each.name: each.fingerprint for each in wanted.entries} if isinstance(wanted, Desired) else {}
    )
    running: dict[str, str] = {}
    if observed is not None and store is not None and observed.runs is not None:
        manifest = store.generation(vm.name, observed.runs.generation)
        if manifest is not None and manifest.digest == observed.runs.digest:
            running = {each.name: each.fingerprint for each in manifest.credentials}
    ages = aging.since(observed, store) if observed is not None and store is not None else {}
    rows = []
    for name, credential in vm.credentials.items():
        ends = expires(values[name]) if name in values else None
        since = [each.began for each in rotations if each.changed.get(name) == published.get(name, "")]
        rows.append(
            SecretRow(
                credential=name,
                kind=vm.kind(name),
                origin=credential.origin,
                published=published.get(name),
                running=running.get(name),
                changed=since[-1].isoformat() if since else rfc3339(int(ages.get(name, 0))),
                max_age_days=credential.max_age_days,
                expires=ends.isoformat() if ends is not None else None,
            )
        )
    return rows


def _wiring(vm: VmConfig) -> WiringRow | None:
    """How the unit starts the VM; None if this process cannot see it."""
    from credferry.agent.doctor import launcher, probe  # noqa: PLC0415 (not for --help)
    from credferry.agent.doctor.finding import UnseenError  # noqa: PLC0415 (see above)

    try:
        unit = probe.unit(vm.unit)
        found = launcher.wiring(unit)
    except UnseenError:
        return None
    return WiringRow(
        launcher=found.wired,
        file=str(found.file) if found.file is not None else None,
        drop_ins=list(unit.get("DropInPaths", [])),
    )


def _stories() -> dict[str, list[Rotation]]:
    """The rotations of each VM, oldest first; none if this process may not read the journal."""
    try:
        loaded = history.load(None)
    except CredferryError as error:
        warn(f"no rotations are shown: {describe(error)}")
        return {}
    stories: dict[str, list[Rotation]] = {}
    for each in tell(loaded.records, periods(loaded)).rotations:
        stories.setdefault(each.vm, []).append(each)
    return stories
