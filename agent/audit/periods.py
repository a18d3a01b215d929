# SPDX-License-Identifier: MIT
"""Which VM ran which fingerprint of which secret, from when to when. Pure.

A period is one start of a VM. It begins with the launcher's record. It ends when PID 1 reports that the unit
ended, or with the end of the host's boot, or at the VM's next start.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from credferry.agent.audit.events import Event
from credferry.agent.audit.history import UnitEvent

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

    from credferry.agent.audit.history import History, UnitRecord
    from credferry.agent.audit.records import Record

_ENDS = {
    UnitEvent.STOPPED: "stopped",
    UnitEvent.SUCCEEDED: "stopped",
    UnitEvent.FAILED: "failed",
    UnitEvent.PROCESS_EXITED: "its process ended",
}


@dataclass(frozen=True, slots=True)
class Period:
    """One start of a VM, and what it ran. ``end`` is None if it still runs at the journal's end."""

    vm: str
    unit: str
    generation: int | None
    begin: datetime
    end: datetime | None
    ended_by: str
    ready: datetime | None
    """When systemd counted the unit as started, if the unit waits for the guest's notification."""
    fingerprints: Mapping[str, str]
    """By credential. Each is empty if the journal no longer holds the record of the generation's sealing."""
    run: str
    channel: str


def periods(history: History) -> tuple[Period, ...]:
    """Every start that the journal records, oldest first."""
    starts = [record for record in history.records if record.event is Event.LAUNCHED]
    sealed = _Sealed(history)
    reboots = {(each.vm, each.invocation) for each in history.records if each.event is Event.GUEST_REBOOT}
    units: dict[str, list[UnitRecord]] = {}
    for each in history.units:
        units.setdefault(each.invocation, []).append(each)
    following: dict[str, Record] = {}
    found: list[Period] = []
    for start, fingerprints in reversed(list(zip(starts, sealed.of_each(starts), strict=True))):
        of_unit = [each for each in units.get(start.invocation, []) if each.unit == start.unit]
        end, ended_by = _end(start, following.get(start.vm), of_unit, history.boots, reboots)
        found.append(
            Period(
                start.vm,
                start.unit,
                start.generation,
                start.time,
                end,
                ended_by,
                _ready(start, of_unit),
                fingerprints or dict.fromkeys(start.credentials, ""),
                start.run,
                start.channel,
            )
        )
        following[start.vm] = start
    return tuple(reversed(found))


class _Sealed:
    """Finds what each generation held: the last record of its sealing before the start."""

    def __init__(self, history: History) -> None:
        self._history = history

    def of_each(self, starts: list[Record]) -> Iterator[Mapping[str, str]]:
        held: dict[tuple[str, int | None], Record] = {}
        wanted = {id(start) for start in starts}
        for record in self._history.records:
            if record.event is Event.SEALED:
                held[record.vm, record.generation] = record
            elif id(record) in wanted:
                sealing = held.get((record.vm, record.generation))
                # After a state directory is removed, a number can be used again; a run id cannot.
                is_it = sealing is not None and sealing.run == record.run
                yield sealing.fingerprints if sealing is not None and is_it else {}


def _end(
    start: Record,
    following: Record | None,
    of_unit: list[UnitRecord],
    boots: Mapping[str, datetime],
    reboots: set[tuple[str, str]],
) -> tuple[datetime | None, str]:
    for each in of_unit:
        if each.event in _ENDS and each.time >= start.time:
            rebooted = (start.vm, start.invocation) in reboots
            return each.time, "the guest rebooted" if rebooted else _ENDS[each.event]
    boot_end = boots.get(start.boot)
    if boot_end is not None and (following is None or following.boot != start.boot):
        return boot_end, "the host went down"
    if following is not None:
        return following.time, "started anew"
    return None, ""


def _ready(start: Record, of_unit: list[UnitRecord]) -> datetime | None:
    # Only a unit that waits for a notification (Type=notify) counts as started later than its process.
    return next(
        (each.time for each in of_unit if each.event is UnitEvent.STARTED and each.time > start.time), None
    )
