# SPDX-License-Identifier: MIT
"""Reads the audit's records from the journal and decides which of them to trust."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from systemd import journal

from credferry.agent.audit.events import Event
from credferry.agent.digests import Mac
from credferry.agent.untrusted import read_untrusted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    _Entry = Mapping[str, Any]


SENT_FILE = "audit.sent"
_SENT = re.compile(r"([0-9]{19}) ([0-9a-f]{64})\n")
_HEAD_MAX, _SENT_MAX = 1 << 20, 128
"""Bytes of each file."""


def sent(state: Path) -> tuple[int, str]:
    """Number and hash of the last record that is known to have been sent; the number is 0 if none is."""
    try:
        match = _SENT.fullmatch(
            read_untrusted(state / SENT_FILE, limit=_SENT_MAX, below=state).decode("ascii")
        )
    except (OSError, ValueError):
        match = None
    return (int(match[1]), match[2]) if match else (0, "")


def chain_hash(key: bytes, fields: Sequence[str]) -> str:
    """The hash of a record over ``fields``, which exclude the hash, in any order. 64 hex digits."""
    return Mac(key).of(json.dumps(sorted(fields)).encode()).hex()


@dataclass(frozen=True, slots=True)
class Record:
    """One fact as the journal holds it."""

    time: datetime
    event: Event
    message: str
    vm: str
    run: str
    generation: int | None
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    credentials: tuple[str, ...] = ()
    unit: str = ""
    """The VM's unit: in an agent's record the unit that it names, in a launcher's the sender's unit."""
    channel: str = ""
    boot: str = ""
    invocation: str = ""
    """Invocation id of the sender's unit."""
    sequence: int | None = None
    order: str = ""
    """What an operator ordered. The next three fields name the caller, the user id and the reason."""
    caller: str = ""
    caller_uid: int | None = None
    reason: str = ""


def reader(directory: Path | None) -> journal.Reader:
    """Open a journal so that no content of an entry stops the reading. Raises OSError."""
    return journal.Reader(
        path=str(directory) if directory else None,
        # python-systemd's own converters of the first two can raise OverflowError, and any user can send
        # the first.
        converters={
            "COREDUMP_TIMESTAMP": bytes,
            "_SOURCE_REALTIME_TIMESTAMP": _moment,
            "PRIORITY": bytes.decode,  # unchanged, for the chain's hash
        },
    )


def moment(entry: _Entry) -> datetime:
    """When an entry was sent, according to journald."""
    sent_at = entry.get("_SOURCE_REALTIME_TIMESTAMP") or entry["__REALTIME_TIMESTAMP"]
    return sent_at.astimezone(UTC) if isinstance(sent_at, datetime) else datetime.now(UTC)


def _moment(microseconds: bytes) -> datetime:
    try:
        return datetime.fromtimestamp(int(microseconds) / 1_000_000, UTC)
    except (OverflowError, OSError):  # OSError: it fits into a float, but into no year
        raise ValueError from None


def trusted(entries: Iterable[_Entry]) -> Iterator[Record]:
    """The trusted records among a journal's entries, each once. Raises nothing."""
    seen: set[str] = set()
    for record, entry in believed(entries):
        chain = text(entry.get("CREDFERRY_HASH", ""))
        if chain and chain in seen:
            continue
        seen.add(chain)
        yield record


def believed(entries: Iterable[_Entry]) -> Iterator[tuple[Record, _Entry]]:
    """The trusted records with their entries, as often as the journal has them. Raises nothing.

    Any user can send credferry's MESSAGE_IDs. A record of the agent is trusted if journald says that root or
    the agent's unit sent it. A record of a launcher is trusted if journald says that it came from the VM's
    own unit. The agent's records name that unit.
    """
    units: dict[str, str] = {}
    for entry in entries:
        record = _record(entry)
        if record is None or not _is_trusted(record, entry, units):
            continue
        if record.event not in FROM_LAUNCHER:
            units[record.vm] = record.unit or units.get(record.vm, "")
        yield record, entry


def own_fields(entry: _Entry) -> list[str]:
    """The fields that `chain_hash` covers: those that the sender of an entry wrote, unchanged."""
    fields = []
    for name, value in entry.items():
        if name.startswith("CREDFERRY_") or name in _CHAINED:
            fields += [f"{name}={text(each)}" for each in _values(value) if name != "CREDFERRY_HASH"]
    return fields


_BY_ID = {event.value: event for event in Event}
_NUMBER = re.compile(r"[0-9]{1,19}")
FROM_LAUNCHER = frozenset({Event.LAUNCHED, Event.LAUNCH_REFUSED, Event.LAUNCH_WARNING, Event.GUEST_REBOOT})
"""Events that a launcher reports. Their records are not part of the chain."""
_CHAINED = {"MESSAGE", "MESSAGE_ID", "PRIORITY", "OBJECT_SYSTEMD_UNIT"}
_AGENT_UNITS = {"credferry.service", "credferry-seal.service"}
"""Units in which the agent may run as another user than root. Only PID 1 puts processes into them."""


def _record(entry: _Entry) -> Record | None:
    message_id = entry.get("MESSAGE_ID")  # a list if a sender gave several; credferry never does
    event = _BY_ID.get(message_id.hex) if isinstance(message_id, UUID) else None
    if event is None:
        return None
    vm = text(entry.get("CREDFERRY_VM", ""))
    generation = text(entry.get("CREDFERRY_GENERATION", ""))
    sequence = text(entry.get("CREDFERRY_SEQUENCE", ""))
    uid = text(entry.get("CREDFERRY_CALLER_UID", ""))
    return Record(
        time=moment(entry),
        event=event,
        message=text(entry.get("MESSAGE", "")),
        vm=vm,
        run=text(entry.get("CREDFERRY_RUN", "")),
        generation=int(generation) if _NUMBER.fullmatch(generation) else None,
        fingerprints=_fingerprints(entry.get("CREDFERRY_FINGERPRINT", [])),
        credentials=tuple(map(text, _values(entry.get("CREDFERRY_CREDENTIAL", [])))),
        unit=text(entry.get("_SYSTEMD_UNIT" if event in FROM_LAUNCHER else "OBJECT_SYSTEMD_UNIT", "")),
        channel=text(entry.get("CREDFERRY_CHANNEL", "")),
        boot=text(entry.get("_BOOT_ID", "")),
        invocation=text(entry.get("_SYSTEMD_INVOCATION_ID", "")),
        sequence=int(sequence) if _NUMBER.fullmatch(sequence) else None,
        order=text(entry.get("CREDFERRY_ORDER", "")),
        caller=text(entry.get("CREDFERRY_CALLER", "")),
        caller_uid=int(uid) if _NUMBER.fullmatch(uid) else None,
        reason=text(entry.get("CREDFERRY_REASON", "")),
    )


def _is_trusted(record: Record, entry: _Entry, units: Mapping[str, str]) -> bool:
    """Whether the sender may send this record. ``units``: VMs' units, from the agent's earlier records."""
    if record.event in FROM_LAUNCHER:
        unit = units.get(record.vm) or f"microvm@{record.vm}.service"
        return text(entry.get("_SYSTEMD_UNIT", "")) == unit
    return entry.get("_UID") == 0 or text(entry.get("_SYSTEMD_UNIT", "")) in _AGENT_UNITS


def _fingerprints(values: object) -> dict[str, str]:
    pairs = [text(value).partition(":") for value in _values(values)]
    return {name: fingerprint for name, _, fingerprint in pairs if name}


def _values(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]


def text(value: object) -> str:
    """A field as text: the first of several values; bytes that are not UTF-8 are replaced."""
    if isinstance(value, list):
        value = value[0] if value else ""
    if isinstance(value, UUID):
        return value.hex
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
