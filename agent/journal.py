# SPDX-License-Identifier: MIT
"""The audit: facts written to and read back from journald. The only module that touches the journal.

Each record of ours carries a sequence number and a keyed hash over itself and the record before; the head
of that chain is kept, fsynced, in the state directory before the record is sent. So a gap, an edit, or a
lost tail shows. A crash between the two leaves a record unsent: the last one is therefore sent again, to
the letter, at each start, and readers count it once.
"""

from __future__ import annotations

import hmac
import json
import os
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import msgspec
from systemd import journal

from agent.durable import replace_durably
from agent.errors import JournalError, StoreError
from agent.events import Event
from agent.journald import Sender

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from agent.store import Store

_HEAD_FILE = "audit.json"
_FACILITY_AUTHPRIV = 10
_SENDER = ("SYSLOG_IDENTIFIER=credferry", f"SYSLOG_FACILITY={_FACILITY_AUTHPRIV}")


class _Head(msgspec.Struct, frozen=True):
    """The last record of the chain, whole, so that it can be sent again."""

    sequence: Annotated[int, msgspec.Meta(ge=0, lt=2**62)] = 0
    hash: str = ""
    fields: list[Annotated[str, msgspec.Meta(pattern="^[A-Z][A-Z0-9_]*=")]] = []


@dataclass(frozen=True, slots=True)
class Fact:
    """What listeners are told of a record: which, and about what; no names of credentials."""

    event: Event
    vm: str
    run: str
    generation: int | None
    sequence: int


@dataclass(frozen=True, slots=True)
class Audit:
    """Writes the audit's records. Every method raises `StoreError` when the head cannot be kept.

    ``listeners`` are told of each record that was sent, in the thread that wrote it. They must not raise.
    """

    store: Store
    sender: Sender = field(default_factory=Sender)
    listeners: Sequence[Callable[[Fact], None]] = ()

    def record(
        self,
        event: Event,
        message: str,
        *,
        run: str = "",
        vm: str = "",
        unit: str = "",
        generation: int | None = None,
        fingerprints: Mapping[str, str] | None = None,
        extra: Mapping[str, str] | None = None,
    ) -> None:
        """Write one fact. ``fingerprints`` are the credentials it is about, by name."""
        named = {
            "CREDFERRY_VM": vm,
            "CREDFERRY_RUN": run,
            "CREDFERRY_GENERATION": "" if generation is None else str(generation),
            # So that journalctl -u shows it with the VM's own messages.
            "OBJECT_SYSTEMD_UNIT": unit,
            **(extra or {}),
        }
        fields = [f"MESSAGE={message}", f"MESSAGE_ID={event.value}", f"PRIORITY={event.priority}"]
        fields += [f"{key}={value}" for key, value in named.items() if value]
        for name, fingerprint in (fingerprints or {}).items():
            fields += [f"CREDFERRY_CREDENTIAL={name}", f"CREDFERRY_FINGERPRINT={name}:{fingerprint}"]
        with self.store.lock("audit.lock"):
            head = self._head()
            fields.append(f"CREDFERRY_SEQUENCE={head.sequence + 1}")
            fields.append(f"CREDFERRY_PREVIOUS={head.hash}")
            digest = chain_hash(self.store.key.derive("audit"), fields)
            fields.append(f"CREDFERRY_HASH={digest}")
            self._keep(_Head(head.sequence + 1, digest, fields))
            self.sender.send([*fields, *_SENDER])
        for listener in self.listeners:
            listener(Fact(event, vm, run, generation, head.sequence + 1))

    def repeat_last(self) -> None:
        """Send the last record again: a crash may have come between keeping and sending it."""
        with self.store.lock("audit.lock"):
            if (head := self._head()).fields:
                self.sender.send([*head.fields, *_SENDER])

    def _head(self) -> _Head:
        try:
            return msgspec.json.decode((self.store.state / _HEAD_FILE).read_bytes(), type=_Head)
        except FileNotFoundError:
            return _Head()
        except (OSError, ValueError, RecursionError):
            # msgspec has three exceptions for what it cannot decode, ValueErrors but for deep nesting.
            # Beginning anew shows in the chain as what it is: the head was lost.
            return _Head(hash="lost")

    def _keep(self, head: _Head) -> None:
        try:
            replace_durably(self.store.state / _HEAD_FILE, msgspec.json.encode(head))
        except OSError as error:
            raise StoreError(
                f"{self.store.state / _HEAD_FILE}: the audit's head cannot be kept: {error.strerror}",
                hint="the state directory must be writable and have room",
            ) from None


def chain_hash(key: bytes, fields: Sequence[str]) -> str:
    """The hash of a record, over its fields but for the hash itself, in any order. 64 hex digits."""
    return hmac.digest(key, json.dumps(sorted(fields)).encode(), "sha256").hex()


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


def read(directory: Path | None = None, *, vm: str | None = None) -> Iterator[Record]:
    """The audit's records, oldest first, each once; ``directory`` is a journal elsewhere, None this host's.

    Only those that are `trusted`. Raises `JournalError`.
    """
    try:
        opened = reader(directory)
    except OSError as error:
        raise JournalError(
            f"{directory or 'the journal'}: cannot be read: {os.strerror(error.errno or 0)}",
            hint="name a directory of journal files, and run as root",
        ) from None
    with opened as entries:
        for event in Event:
            entries.add_match(MESSAGE_ID=event.value)
        for record in trusted(entries):
            if vm is None or record.vm in {vm, ""}:
                yield record


def reader(directory: Path | None) -> journal.Reader:
    """A journal whose entries can be gone through whatever their senders wrote. Raises OSError."""
    return journal.Reader(
        path=str(directory) if directory else None,
        # python-systemd's own converters of these let OverflowError through, and anybody can send the one.
        converters={"COREDUMP_TIMESTAMP": bytes, "_SOURCE_REALTIME_TIMESTAMP": _moment},
    )


def _moment(microseconds: bytes) -> datetime:
    try:
        return datetime.fromtimestamp(int(microseconds) / 1_000_000, UTC)
    except (OverflowError, OSError):  # the latter where it fits into a float and into no year
        raise ValueError from None


def trusted(entries: Iterable[Mapping[str, Any]]) -> Iterator[Record]:
    """The records among a journal's entries that may be believed, each once. Raises nothing.

    A record counts as trusted when journald says that root sent it, or the agent's unit, or, for what a
    launcher sends, that it came from the VM's own unit; which one that is, the former say. Anybody can send
    our MESSAGE_IDs.
    """
    seen: set[str] = set()
    units: dict[str, str] = {}
    for entry in entries:
        record = _record(entry)
        if record is None or not _is_trusted(record, entry, units):
            continue
        if record.event not in _FROM_LAUNCHER:
            units[record.vm] = _text(entry.get("OBJECT_SYSTEMD_UNIT", "")) or units.get(record.vm, "")
        chain = _text(entry.get("CREDFERRY_HASH", ""))
        if chain and chain in seen:
            continue
        seen.add(chain)
        yield record


_BY_ID = {event.value: event for event in Event}
_NUMBER = re.compile(r"[0-9]{1,19}")
_FROM_LAUNCHER = {Event.LAUNCHED, Event.LAUNCH_REFUSED, Event.GUEST_REBOOT}
_AGENT_UNITS = {"credferry.service", "credferry-seal.service"}
"""Where the agent may be another user than root; nobody but PID 1 puts a process there."""


def _record(entry: Mapping[str, Any]) -> Record | None:
    message_id = entry.get("MESSAGE_ID")  # a list where a sender gave several, which we never do
    event = _BY_ID.get(message_id.hex) if isinstance(message_id, UUID) else None
    if event is None:
        return None
    vm = _text(entry.get("CREDFERRY_VM", ""))
    generation = _text(entry.get("CREDFERRY_GENERATION", ""))
    moment = entry.get("_SOURCE_REALTIME_TIMESTAMP") or entry["__REALTIME_TIMESTAMP"]
    return Record(
        time=moment.astimezone(UTC) if isinstance(moment, datetime) else datetime.now(UTC),
        event=event,
        message=_text(entry.get("MESSAGE", "")),
        vm=vm,
        run=_text(entry.get("CREDFERRY_RUN", "")),
        generation=int(generation) if _NUMBER.fullmatch(generation) else None,
        fingerprints=_fingerprints(entry.get("CREDFERRY_FINGERPRINT", [])),
    )


def _is_trusted(record: Record, entry: Mapping[str, Any], units: Mapping[str, str]) -> bool:
    """Whether the sender may say so; ``units`` are VMs' units, by earlier records of the agent."""
    if record.event in _FROM_LAUNCHER:
        unit = units.get(record.vm) or f"microvm@{record.vm}.service"
        return _text(entry.get("_SYSTEMD_UNIT", "")) == unit
    return entry.get("_UID") == 0 or _text(entry.get("_SYSTEMD_UNIT", "")) in _AGENT_UNITS


def _fingerprints(values: object) -> dict[str, str]:
    pairs = [_text(value).partition(":") for value in (values if isinstance(values, list) else [values])]
    return {name: fingerprint for name, _, fingerprint in pairs if name}


def _text(value: object) -> str:
    if isinstance(value, list):
        value = value[0] if value else ""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
