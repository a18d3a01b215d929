# SPDX-License-Identifier: MIT
"""What ``credferry audit`` prints: stories, records and periods, for people, as JSON, and as CSV.

The rows of `documents` describe JSON, its schema and the columns of CSV.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, tzinfo
from itertools import groupby
from typing import Any, Final

import msgspec

from credferry.agent.audit.events import Event
from credferry.agent.audit.periods import Period
from credferry.agent.audit.records import Record
from credferry.agent.audit.rotations import Ordered, Rotation, Step, Story, describe_revert
from credferry.agent.cli.documents import (
    ChangeRow,
    Document,
    EarlierRow,
    OrderedRow,
    PeriodRow,
    RecordRow,
    RotationRow,
    StepRow,
)
from credferry.agent.cli.times import moment
from credferry.agent.printable import cell

SHORT = 12
"""Digits of a fingerprint that people are shown; 48 bits tell a host's values apart."""

_SEVERAL: Final = {
    "changed": ("changed", "reverted"),
    "steps": ("published", "sealed", "restart_asked", "launched", "guest_ready", "restarted"),
    "later": (),
    "ordered": OrderedRow.__struct_fields__,
}
"""Fields of a row that are not one cell each, and their columns."""


def columns(kind: type[Document], first: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The columns of CSV for a kind of row: its fields in their order, but some of them first."""
    fields = [field.encode_name for field in msgspec.structs.fields(kind)]
    names = [column for field in fields for column in _SEVERAL.get(field, (field,))]
    return (*first, *(name for name in names if name not in first))


RECORD_COLUMNS: Final = columns(RecordRow, ("time", "run"))
PERIOD_COLUMNS: Final = columns(PeriodRow)
ROTATION_COLUMNS: Final = columns(RotationRow)
_ORDERS: Final = frozenset({Event.ORDERED, Event.FLEET_ORDERED})


def record_row(record: Record) -> RecordRow:
    """A record as a row."""
    ordered = Ordered(record.order, record.caller, record.caller_uid, record.reason)
    return RecordRow(
        time=record.time.isoformat(),
        event=record.event.label,
        vm=record.vm,
        unit=record.unit,
        run=record.run,
        generation=record.generation,
        fingerprints=dict(record.fingerprints),
        credentials=list(record.credentials),
        channel=record.channel,
        sequence=record.sequence,
        message=record.message,
        ordered=_ordered_row(ordered) if record.event in _ORDERS else None,
    )


def record_line(record: Record, where: tzinfo | None = UTC) -> str:
    """A record as people are shown it. Not in a table, which has to know them all first."""
    at = moment(record.time, where, milliseconds=True)
    return f"{at}  {record.run[:8] or '-':<8}  {record.event.label:<15}  {record.message}"


def period_rows(periods: Sequence[Period], credential: str | None = None) -> Iterator[PeriodRow]:
    """One row for each credential that a VM ran, from when to when."""
    for period in periods:
        for name, fingerprint in period.fingerprints.items():
            if credential in {None, name}:
                yield PeriodRow(
                    vm=period.vm,
                    credential=name,
                    fingerprint=fingerprint or None,
                    generation=period.generation,
                    begin=period.begin.isoformat(),
                    end=period.end.isoformat() if period.end else None,
                    seconds=(period.end - period.begin).total_seconds() if period.end else None,
                    ended_by=period.ended_by or None,
                    guest_ready=period.ready.isoformat() if period.ready else None,
                    unit=period.unit,
                    channel=period.channel,
                    run=period.run,
                )


def period_line(row: PeriodRow, where: tzinfo | None = UTC) -> list[str]:
    """Such a row as people are shown it."""
    return [
        row.vm,
        row.credential,
        (row.fingerprint or "unknown")[:SHORT],
        str(row.generation),
        moment(row.begin, where),
        moment(row.end, where) if row.end else "now",
        row.ended_by or "runs",
    ]


def rotation_row(rotation: Rotation) -> RotationRow:
    """A rotation as a row."""
    return RotationRow(
        vm=rotation.vm,
        run=rotation.run,
        generation=rotation.generation,
        began=rotation.began.isoformat(),
        ended=rotation.ended.isoformat(),
        seconds=round(rotation.seconds, 6),
        outcome=rotation.outcome.value,
        changed=[
            ChangeRow(
                credential=name,
                fingerprint=fingerprint,
                reverted_to=EarlierRow(generation=earlier.generation, time=earlier.time.isoformat())
                if (earlier := rotation.reverted.get(name))
                else None,
            )
            for name, fingerprint in rotation.changed.items()
        ],
        steps=[_step_row(rotation, step) for step in rotation.steps],
        later=[_step_row(rotation, step) for step in rotation.later],
        ordered=_ordered_row(rotation.ordered) if rotation.ordered is not None else None,
    )


def story_lines(story: Story, where: tzinfo | None = UTC) -> Iterator[str]:
    """The story for people: rotations by their run, and between them what belongs to none."""
    parts: list[tuple[datetime, str, Rotation | Record]] = [
        *((each.began, each.run, each) for each in story.rotations),
        *((each.time, "", each) for each in story.facts),
    ]
    begins: dict[str, datetime] = {}
    for began, run, _ in sorted(parts, key=lambda part: part[0]):
        begins.setdefault(run, began)
    # A run's rotations stay together, at the place of the first.
    parts.sort(key=lambda part: (begins[part[1]] if part[1] else part[0], part[1], part[0]))
    for run, group in groupby(parts, key=lambda part: part[1]):
        yield from _run_lines(run, [part[2] for part in group], where)


def write_csv(names: Sequence[str], rows: Iterable[Document]) -> None:
    """Print CSV (RFC 4180): the names of columns, and rows."""
    _write([names])
    write_rows(names, rows)


def write_rows(names: Sequence[str], rows: Iterable[Document]) -> None:
    """Print rows of CSV."""
    _write(_cells(names, row) for row in rows)


def _write(rows: Iterable[Sequence[Any]]) -> None:
    csv.writer(sys.stdout).writerows(map(cell, row) for row in rows)


def _cells(names: Sequence[str], row: Document) -> list[Any]:
    """The cells of a row in these columns; of a step that came more than once, the last."""
    found: dict[str, Any] = {}
    for field in msgspec.structs.fields(row):
        value = getattr(row, field.name)
        match field.encode_name:
            case "fingerprints":
                found["fingerprints"] = " ".join(f"{name}:{each}" for name, each in value.items())
            case "credentials":
                found["credentials"] = " ".join(value)
            case "changed":
                found["changed"] = " ".join(f"{each.credential}:{each.fingerprint}" for each in value)
                found["reverted"] = " ".join(
                    f"{each.credential}:{each.reverted_to.generation}" for each in value if each.reverted_to
                )
            case "steps":
                moments = {step.event.replace(" ", "_"): step.time for step in value}
                found |= {name: moments.get(name) for name in _SEVERAL["steps"]}
            case "ordered" if value is not None:
                found |= msgspec.structs.asdict(value)
            case name:
                found[name] = value
    if isinstance(row, RotationRow):
        found["seconds"] = f"{row.seconds:.6f}"
    return [found.get(name) for name in names]


def _run_lines(run: str, parts: Sequence[Rotation | Record], where: tzinfo | None) -> Iterator[str]:
    rotations = [part for part in parts if isinstance(part, Rotation)]
    if rotations:
        began, ended = min(each.began for each in rotations), max(each.ended for each in rotations)
        vms = f"{len(rotations)} VM{'s' if rotations[1:] else ''}"
        at = moment(began, where, milliseconds=True)
        yield f"{at}  run {run[:8]}: {vms}, {(ended - began).total_seconds():.3f} s"
    for part in parts:
        if isinstance(part, Rotation):
            yield from _rotation_lines(part, where)
        else:
            label = part.event.label
            at = moment(part.time, where, milliseconds=True)
            yield f"{at}  {'' if label in part.message else f'{label}: '}{part.message}"


def _rotation_lines(rotation: Rotation, where: tzinfo | None) -> Iterator[str]:
    generation = f", generation {rotation.generation}" if rotation.generation else ""
    yield f"  {rotation.vm}{generation}: {rotation.outcome.value} after {rotation.seconds:.3f} s"
    for name, fingerprint in rotation.changed.items():
        note = describe_revert(rotation.reverted, name, where)
        yield f"    {name} {fingerprint[:SHORT]}{', ' if note else ''}{note}"
    for step in rotation.steps:
        offset = (step.time - rotation.began).total_seconds()
        yield f"    {offset:+9.3f} s  {step.label:<14}  {step.text}"
    for step in rotation.later:
        yield f"    {moment(step.time, where, milliseconds=True)}  {step.label}: {step.text}"


def _ordered_row(ordered: Ordered) -> OrderedRow:
    return OrderedRow(
        order=ordered.order, caller=ordered.caller, caller_uid=ordered.uid, reason=ordered.reason
    )


def _step_row(rotation: Rotation, step: Step) -> StepRow:
    return StepRow(
        time=step.time.isoformat(),
        offset_seconds=round((step.time - rotation.began).total_seconds(), 6),
        event=step.label,
        message=step.text,
    )
