# SPDX-License-Identifier: MIT
"""The fleet as its verbs use it: the engine of [fleet], what groups are like, and the audit of orders."""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from credferry.agent.audit.events import Event
from credferry.agent.audit.writer import Audit
from credferry.agent.cli.documents import (
    FleetGroupRow,
    FleetHaltRow,
    FleetHostRow,
    FleetSlotRow,
    rfc3339,
)
from credferry.agent.cli.owner import as_owner_of
from credferry.agent.config.loading import load
from credferry.agent.config.model import nearest
from credferry.agent.errors import ConfigurationError, FleetError, KeyFileError, UsageError
from credferry.agent.fleet import keys
from credferry.agent.fleet.model import (
    Halt,
    Limit,
    OfHost,
    Slot,
    Unavailable,
    Unsupported,
)
from credferry.agent.fleet.opening import holder, open_engine, open_members, unit_credentials
from credferry.agent.fleet.presence import LEASE_SECONDS, Presence
from credferry.agent.reconcile.sealer import new_run
from credferry.agent.rollout.operators import Operator
from credferry.agent.sealing.keys import read_machine_id
from credferry.agent.store import form
from credferry.agent.store.fleet_cluster import FleetCluster
from credferry.agent.store.generations import Store
from credferry.agent.store.opening import present_key

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from credferry.agent.config.fleet import FleetConfig
    from credferry.agent.config.model import Config
    from credferry.agent.fleet.model import Changed, Engine, Group, Holder, Present, Unreadable

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class OpenFleet:
    """The fleet of a configuration. Its methods raise `FleetError` for an engine that is away."""

    config: Config
    settings: FleetConfig
    engine: Engine
    presence: Presence
    operator: Holder

    def known_groups(self) -> list[str]:
        """All groups in the engine, and those of this host's configuration."""
        own = {
            self.settings.group,
            *map(self.settings.group_of, self.config.vms.values()),
        }
        return sorted({*_got(self.engine.groups()), *own})

    def rows(self, groups: Sequence[str]) -> list[FleetGroupRow]:
        """These groups as rows, or all groups. Raises `UsageError` for one that is not known."""
        known = self.known_groups()
        for name in groups:
            _require_known(name, known)
        return [
            _row(_got(self.engine.state(name)), _got(self.presence.hosts(name))) for name in groups or known
        ]

    def groups_to_release(
        self, what: OfHost | Unreadable, group: str | None, *, is_forced: bool
    ) -> list[str]:
        """Of which groups to free slots.

        Raises `UsageError` for a host that is not known, and `FleetError` for one whose agent runs.
        """
        known = self.known_groups() if self.settings.fleetlock is None else [group or self.settings.group]
        if group is not None:
            _require_known(group, known)
        chosen = known if group is None else [group]
        if not isinstance(what, OfHost) or self.settings.fleetlock is not None:
            return chosen
        if not keys.HOST.fullmatch(what.host):
            raise UsageError("not the name of a host", hint="see: credferry fleet status")
        present = {each.host for name in chosen for each in _got(self.presence.hosts(name))}
        found = {name: _got(self.engine.state(name)).slots for name in chosen}
        holders = {slot.holder.host for slots in found.values() for slot in slots}
        if what.host not in present | holders:
            raise UsageError(
                f"{what.host}: no host of this name holds a slot",
                hint=f"use {nearest(what.host, present | holders)}"
                if present | holders
                else "see: credferry fleet status",
            )
        if what.host in present and not is_forced:
            raise FleetError(
                f"{what.host}: its agent has reported within the last {LEASE_SECONDS // 60} minutes, and "
                "gives its slots back itself; nothing was freed",
                hint="make sure that the host is off, then wait, or add --force",
            )
        wanted = (what.host, what.vm)
        return [
            name
            for name, slots in found.items()
            if any(wanted in {(each.holder.host, ""), (each.holder.host, each.holder.vm)} for each in slots)
        ]


def open_fleet(file: Path) -> OpenFleet:
    """The fleet of a configuration. It asks nobody yet. Raises `ConfigurationError`."""
    config = load(file)
    if config.fleet is None:
        raise ConfigurationError(
            f"{config.file}: this host belongs to no fleet",
            hint="add a table [fleet]; see credferry.toml(5)",
        )
    credentials = unit_credentials()
    try:
        engine = open_engine(config.fleet, credentials)
    except ConfigurationError as error:
        raise FleetError(
            f"{error}, and the agent's unit does not run",
            hint="start the agent: systemctl start credferry.service; or ask on another host",
        ) from None
    members = open_members(config.fleet, credentials)
    machine = read_machine_id(Path(config.machine_id_file))
    return OpenFleet(config, config.fleet, engine, Presence(members), holder(config.fleet, "", machine))


def require_group(fleet: OpenFleet, group: str, *, is_new: bool) -> None:
    """Raises `UsageError` for a group that is not known, or not the name of one."""
    if not keys.GROUP.fullmatch(group):
        raise UsageError(f"{group!r}: not the name of a group", hint="use 1 to 64 of A-Z a-z 0-9 . -")
    if not is_new and fleet.settings.fleetlock is None:
        _require_known(group, fleet.known_groups(), "; or add --new, if that is a new group")


def applied(found: Changed) -> int:
    """How much an order has changed. Raises `FleetError` if the engine did not carry it out."""
    return _got(found).changed


@contextmanager
def recorded(fleet: OpenFleet, order: str, group: str, reason: str, *, detail: str = "") -> Iterator[str]:
    """Write an order to the audit before it is carried out; gives its run. Raises as `Audit.record` does.

    ``group`` is empty for an order about this host.
    """
    operator, run = Operator.of_user(os.getuid(), reason), new_run()
    state = Path(fleet.config.state_directory)
    form.check(state)
    try:
        key = present_key(fleet.config)
    except FileNotFoundError:
        raise KeyFileError(
            f"{fleet.config.host_key}: this host has no key for the audit yet",
            hint="start the agent once: systemctl start credferry.service",
        ) from None
    audit = Audit(Store(state, key), present_key=partial(present_key, fleet.config))
    with as_owner_of(state):
        audit.record(
            Event.FLEET_ORDERED,
            operator.said(f"{' '.join(filter(None, ('fleet', order, group, detail)))}:"),
            run=run,
            extra=operator.fields(f"fleet {order}") | ({"CREDFERRY_FLEET_GROUP": group} if group else {}),
        )
    yield run


def forget_cluster(fleet: OpenFleet, reason: str) -> bool:
    """Have this host keep to the etcd that answers next; False if it keeps to none yet.

    A running agent reads the record again before it refuses an answer. Raises as `recorded` does, and
    `StoreError`.
    """
    state = Path(fleet.config.state_directory)
    with recorded(fleet, "forget-cluster", "", reason), as_owner_of(state):
        return FleetCluster(state).forget()


def _got(found: _T | Unavailable | Unsupported) -> _T:
    if isinstance(found, Unavailable | Unsupported):
        raise FleetError(found.reason, hint=found.hint)
    return found


def _require_known(name: str, known: Sequence[str], more: str = "") -> None:
    if name not in known:
        raise UsageError(f"there is no group {name!r}", hint=f"use {nearest(name, known)}{more}")


def _row(group: Group, hosts: Sequence[Present]) -> FleetGroupRow:
    halt = group.halt
    return FleetGroupRow(
        group=group.name,
        limit=group.limit.number if isinstance(group.limit, Limit) else None,
        held=[
            FleetSlotRow(
                slot=each.number,
                host=each.holder.host,
                vm=each.holder.vm,
                change=each.change,
                since=rfc3339(int(each.since)),
            )
            if isinstance(each, Slot)
            else FleetSlotRow(slot=each.number, host=None, vm=None, change="", since=None)
            for each in group.held
        ],
        halt=None
        if halt is None
        else FleetHaltRow(
            host=halt.holder.host if halt.holder else None,
            vm=(halt.holder.vm or None) if halt.holder else None,
            why=halt.why if isinstance(halt, Halt) else halt.text,
            change=halt.change if isinstance(halt, Halt) else "",
            since=rfc3339(int(halt.since)) if isinstance(halt, Halt) else None,
        ),
        hosts=[
            FleetHostRow(
                host=each.host, version=each.version, vms=dict(each.vms), since=rfc3339(int(each.since))
            )
            for each in hosts
        ],
    )
