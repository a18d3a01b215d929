# SPDX-License-Identifier: MIT
"""What ``credferry audit`` prints: stories, records and periods, for people, as JSON, and as CSV."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from itertools import groupby
from typing import Any

from credferry.agent.audit.events import Event
from credferry.agent.audit.periods import Period
from credferry.agent.audit.records import Record
from credferry.agent.audit.rotations import Ordered, Rotation, Story, describe_revert
from credferry.agent.printable import cell

SHORT = 12
"""Digits of a fingerprint that people are shown; 48 bits tell a host's values apart."""

RECORD_COLUMNS = (
    "time", "run", "event", "vm", "unit", "generation", "fingerprints", "credentials", "channel", "sequence",
    "message", "order", "caller", "caller_uid", "reason",
)  # fmt: skip
PERIOD_COLUMNS = (
    "vm", "credential", "fingerprint", "generation", "from", "to", "seconds", "ended_by", "guest_ready",
    "unit", "channel", "run",
)  # fmt: skip
ROTATION_COLUMNS = (
    "vm", "run", "generation", "began", "ended", "seconds", "outcome", "changed", "reverted", "published",
    "sealed", "restart_asked", "launched", "guest_ready", "restarted", "order", "caller", "caller_uid",
    "reason",
)  # fmt: skip


def record_row(record: Record) -> dict[str, Any]:
    """A record as JSON has it."""
    return {
        "time": record.time.isoformat(),
        "event": record.event.label,
        "vm": record.vm,
        "unit": record.unit,
        "run": record.run,
        "generation": record.generation,
        "fingerprints": dict(record.fingerprints),
        "credentials": list(record.credentials),
        "channel": record.channel,
        "sequence": record.sequence,
        "message": record.message,
        "ordered": _ordered_row(Ordered(record.order, record.caller, record.caller_uid, record.reason))
        if record.event is Event.ORDERED
        else None,
    }


def record_cells(row: dict[str, Any]) -> list[Any]:
    """Such a record as CSV has it."""
    several = {
        "fingerprints": " ".join(f"{name}:{each}" for name, each in row["fingerprints"].items()),
        "credentials": " ".join(row["credentials"]),
    }
    cells = row | several | (row["ordered"] or _NO_ORDER)
    return [cells[column] for column in RECORD_COLUMNS]


def record_line(record: Record) -> str:
    """A record as people are shown it. Not in a table, which has to know them all first."""
    return f"{_moment(record.time)}  {record.run[:8] or '-':<8}  {record.event.label:<15}  {record.message}"


def period_rows(periods: Sequence[Period], credential: str | None = None) -> Iterator[dict[str, Any]]:
    """One row for each credential that a VM ran, from when to when."""
    for period in periods:
        for name, fingerprint in period.fingerprints.items():
            if credential in {None, name}:
                yield {
                    "vm": period.vm,
                    "credential": name,
                    "fingerprint": fingerprint or None,
                    "generation": period.generation,
                    "from": period.begin.isoformat(),
                    "to": period.end.isoformat() if period.end else None,
                    "seconds": (period.end - period.begin).total_seconds() if period.end else None,
                    "ended_by": period.ended_by or None,
                    "guest_ready": period.ready.isoformat() if period.ready else None,
                    "unit": period.unit,
                    "channel": period.channel,
                    "run": period.run,
                }


def period_line(row: dict[str, Any]) -> list[str]:
    """Such a row as people are shown it."""
    return [
        row["vm"],
        row["credential"],
        (row["fingerprint"] or "unknown")[:SHORT],
        str(row["generation"]),
        _moment(datetime.fromisoformat(row["from"])),
        _moment(datetime.fromisoformat(row["to"])) if row["to"] else "now",
        row["ended_by"] or "runs",
    ]


def rotation_row(rotation: Rotation) -> dict[str, Any]:
    """A rotation as JSON has it."""
    return {
        "vm": rotation.vm,
        "run": rotation.run,
        "generation": rotation.generation,
        "began": rotation.began.isoformat(),
        "ended": rotation.ended.isoformat(),
        "seconds": round(rotation.seconds, 6),
        "outcome": rotation.outcome.value,
        "changed": [
            {
                "credential": name,
                "fingerprint": fingerprint,
                "reverted_to": {
                    "generation": rotation.reverted[name].generation,
                    "time": rotation.reverted[name].time.isoformat(),
                }
                if name in rotation.reverted
                else None,
            }
            for name, fingerprint in rotation.changed.items()
        ],
        "steps": [_step_row(rotation, step.time, step.label, step.text) for step in rotation.steps],
        "later": [_step_row(rotation, step.time, step.label, step.text) for step in rotation.later],
        "ordered": _ordered_row(rotation.ordered) if rotation.ordered is not None else None,
    }


def rotation_cells(rotation: Rotation) -> list[Any]:
    """A rotation as CSV has it; of a step that came more than once, the last."""
    moments = {step.label: step.time.isoformat() for step in rotation.steps}
    return [
        rotation.vm,
        rotation.run,
        rotation.generation,
        rotation.began.isoformat(),
        rotation.ended.isoformat(),
        f"{rotation.seconds:.6f}",
        rotation.outcome.value,
        " ".join(f"{name}:{fingerprint}" for name, fingerprint in rotation.changed.items()),
        " ".join(f"{name}:{earlier.generation}" for name, earlier in rotation.reverted.items()),
        *(
            moments.get(label, "")
            for label in ("published", "sealed", "restart asked", "launched", "guest ready", "restarted")
        ),
        *(_ordered_row(rotation.ordered) if rotation.ordered is not None else _NO_ORDER).values(),
    ]


def story_lines(story: Story) -> Iterator[str]:
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
        yield from _run_lines(run, [part[2] for part in group])


def write_csv(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print CSV (RFC 4180) with a line of names first."""
    write_rows([columns])
    write_rows(rows)


def write_rows(rows: Iterable[Sequence[Any]]) -> None:
    """Print rows of CSV."""
    csv.writer(sys.stdout).writerows(map(cell, row) for row in rows)


def _run_lines(run: str, parts: Sequence[Rotation | Record]) -> Iterator[str]:
    rotations = [part for part in parts if isinstance(part, Rotation)]
    if rotations:
        began, ended = min(each.began for each in rotations), max(each.ended for each in rotations)
        vms = f"{len(rotations)} VM{'s' if rotations[1:] else ''}"
        yield f"{_moment(began)}  run {run[:8]}: {vms}, {(ended - began).total_seconds():.3f} s"
    for part in parts:
        if isinstance(part, Rotation):
            yield from _rotation_lines(part)
        else:
            label = part.event.label
            yield f"{_moment(part.time)}  {'' if label in part.message else f'{label}: '}{part.message}"


def _rotation_lines(rotation: Rotation) -> Iterator[str]:
    generation = f", generation {rotation.generation}" if rotation.generation else ""
    yield f"  {rotation.vm}{generation}: {rotation.outcome.value} after {rotation.seconds:.3f} s"
    for name, fingerprint in rotation.changed.items():
        note = describe_revert(rotation.reverted, name)
        yield f"    {name} {fingerprint[:SHORT]}{', ' if note else ''}{note}"
    for step in rotation.steps:
        offset = (step.time - rotation.began).total_seconds()
        yield f"    {offset:+9.3f} s  {step.label:<14}  {step.text}"
    for step in rotation.later:
        yield f"    {_moment(step.time)}  {step.label}: {step.text}"


def _ordered_row(ordered: Ordered) -> dict[str, Any]:
    return {
        "order": ordered.order,
        "caller": ordered.caller,
        "caller_uid": ordered.uid,
        "reason": ordered.reason,
    }


_NO_ORDER = _ordered_row(Ordered("", "", None, ""))


def _step_row(rotation: Rotation, time: datetime, label: str, text: str) -> dict[str, Any]:
    offset = round((time - rotation.began).total_seconds(), 6)
    return {"time": time.isoformat(), "offset_seconds": offset, "event": label, "message": text}


def _moment(time: datetime) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
