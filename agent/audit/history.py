# SPDX-License-Identifier: MIT
"""Reads the journal: the audit's records, PID 1's records about VMs' units, and when boots ended.

The journal's own index of MESSAGE_IDs finds the entries, so other entries in the journal cost no time.
"""

from __future__ import annotations

import enum
import os
import select
import subprocess
from collections import deque
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from credferry.agent.audit import records
from credferry.agent.audit.chain import Link
from credferry.agent.audit.events import Event
from credferry.agent.errors import JournalError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from credferry.agent.audit.records import Record

_SHOWN_BEFORE_FOLLOWING = 10  # as journalctl
_SYNC_SECONDS = 30.0
_PLACES = (Path("/var/log/journal"), Path("/run/log/journal"))


class UnitEvent(enum.Enum):
    """PID 1's messages about a unit; the values are its MESSAGE_IDs (systemd src/systemd/sd-messages.h)."""

    STARTED = "39f53479d3a045ac8e11786248231fbf"
    STOPPED = "9d1aaa27d60140bd96365438aad20286"
    SUCCEEDED = "7ad2d189f7e94e70a38c781354912448"
    FAILED = "d9b373ed55a64feb8242e02dbe79a49c"
    PROCESS_EXITED = "98e322203f7a4ed290d09fe03c09fe15"


@dataclass(frozen=True, slots=True)
class UnitRecord:
    """One of PID 1's records about a VM's unit."""

    time: datetime
    event: UnitEvent
    unit: str
    invocation: str


@dataclass(frozen=True, slots=True)
class History:
    """The data for the audit's reports. ``boots``: the last moment of each boot except the last boot."""

    records: tuple[Record, ...]
    units: tuple[UnitRecord, ...] = ()
    boots: Mapping[str, datetime] = field(default_factory=dict)


def load(directory: Path | None) -> History:
    """Load a directory's journal, or this host's journal for None. Raises `JournalError`."""
    records = tuple(read(directory))
    launched = [record for record in records if record.event is Event.LAUNCHED]
    units = sorted({record.unit for record in launched})
    boots = {record.boot for record in launched if record.boot}
    with _opened(directory) as entries:
        newest = _last_entry(entries)
    last_boot = newest[0] if newest else ""
    ends = {boot: end for boot in boots - {last_boot} if (end := _end_of(directory, boot))}
    return History(records, tuple(_unit_records(directory, units)), ends)


def read(directory: Path | None) -> Iterator[Record]:
    """The audit's trusted records, oldest first, each once. Raises `JournalError`."""
    with _opened(directory) as entries:
        _match(entries)
        yield from records.trusted(entries)


def links(directory: Path | None) -> Iterator[Link]:
    """The records that should form the chain, as the journal holds them. Raises `JournalError`."""
    if directory is None:  # journald may not have written the latest records yet
        command = ["journalctl", "--sync"]
        with suppress(OSError, subprocess.TimeoutExpired):  # without journald there is nothing to wait for
            subprocess.run(command, capture_output=True, check=False, timeout=_SYNC_SECONDS)
    with _opened(directory) as entries:
        _match(entries)
        for record, entry in records.believed(entries):
            if record.event not in records.FROM_LAUNCHER:
                yield Link(
                    record.sequence,
                    _text(entry.get("CREDFERRY_HASH")),
                    _text(entry.get("CREDFERRY_PREVIOUS")),
                    tuple(records.own_fields(entry)),
                    record.time,
                    record.event.label,
                )


def follow(directory: Path | None, show: Callable[[Record], None], *, since: float | None = None) -> None:
    """Show the last records, or those since a moment, and then each new record. Never returns.

    Raises `JournalError`, and whatever ``show`` raises.
    """
    # Earlier records are read, too: they name the unit of each VM.
    held: deque[Record] = deque(maxlen=_SHOWN_BEFORE_FOLLOWING if since is None else None)
    caught_up = False

    def catch_up() -> None:
        nonlocal caught_up
        caught_up = True
        while held:
            show(held.popleft())

    with _opened(directory) as entries:
        _match(entries)
        for record in records.trusted(_endless(entries, catch_up)):
            if since is not None and record.time.timestamp() < since:
                continue
            if caught_up:
                show(record)
            else:
                held.append(record)


def _endless(entries: Any, on_end: Callable[[], None]) -> Iterator[Mapping[str, Any]]:  # noqa: ANN401 (python-systemd has no types)
    # Not sd_journal_wait(3): after a signal it waits again, so Ctrl-C would take effect only at the next
    # entry (systemd src/libsystemd/sd-journal/sd-journal.c).
    poll = select.poll()
    poll.register(entries.fileno(), entries.get_events())
    while True:
        yield from entries
        on_end()
        poll.poll(entries.get_timeout_ms())
        entries.process()


@contextmanager
def _opened(directory: Path | None) -> Iterator[Any]:
    if directory is None:
        _require_right()
    try:
        entries = records.reader(directory)
    except OSError as error:
        raise JournalError(
            f"{directory or 'the journal'}: cannot be read: {os.strerror(error.errno or 0)}",
            hint="check that it is a directory of journal files, and run as root",
        ) from None
    with entries:
        yield entries


def _require_right() -> None:
    """Raises `JournalError` if this host has a journal, and this process may read none of it.

    libsystemd does not report this: it reads the files that it may read.
    """
    files = [file for each in _PLACES for file in each.glob("*/system.journal")]
    if files and not any(os.access(file, os.R_OK) for file in files):
        raise JournalError(
            "this user may not read the system's journal, which has the audit",
            hint="run the verb as root, or as a member of the group systemd-journal",
        )


def _match(entries: Any) -> None:  # noqa: ANN401 (as above)
    for event in Event:
        entries.add_match(MESSAGE_ID=event.value)


def _unit_records(directory: Path | None, units: Iterable[str]) -> Iterator[UnitRecord]:
    by_id = {event.value: event for event in UnitEvent}
    with _opened(directory) as entries:
        # Matches of one field are alternatives, and all fields must match: sd_journal_add_match(3). Without
        # a unit, the empty name matches nothing.
        for unit in units or [""]:
            entries.add_match(UNIT=unit)
        for event in UnitEvent:
            entries.add_match(MESSAGE_ID=event.value)
        entries.add_match(_PID="1")
        for entry in entries:
            said = by_id.get(_text(entry["MESSAGE_ID"]))
            if said is not None:
                invocation = _text(entry.get("INVOCATION_ID"))
                yield UnitRecord(records.moment(entry), said, _text(entry["UNIT"]), invocation)


def _end_of(directory: Path | None, boot: str) -> datetime | None:
    with _opened(directory) as entries:
        entries.add_match(_BOOT_ID=boot)
        found = _last_entry(entries)
        return found[1] if found else None


def _last_entry(entries: Any) -> tuple[str, datetime] | None:  # noqa: ANN401 (as above)
    entries.seek_tail()
    entry = entries.get_previous()
    return (_text(entry.get("_BOOT_ID")), entry["__REALTIME_TIMESTAMP"].astimezone(UTC)) if entry else None


def _text(value: object) -> str:
    return records.text(value) if value is not None else ""
