# SPDX-License-Identifier: MIT
"""The audit: writes facts to journald, as one chain of records.

Each record of the agent carries a sequence number and a keyed hash over itself and the previous record.
Before the agent sends a record, it keeps it, fsynced, as the chain's head in the state directory. So a gap,
an edit, or a lost tail is detected. A crash between keeping and sending leaves a record unsent. The agent
therefore sends the last record again, unchanged, at each start, and before the next record if the last one
is not known to have been sent. Readers count it once. The agent also notes which record was sent last, so
that an unsent record does not count as lost.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import msgspec

from credferry.agent.audit.events import Event
from credferry.agent.audit.records import _HEAD_MAX, SENT_FILE, chain_hash, sent
from credferry.agent.digests import are_same
from credferry.agent.errors import KeyFileError, StoreError
from credferry.agent.journald import Sender
from credferry.agent.store.files import replace_durably
from credferry.agent.untrusted import read_untrusted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from credferry.agent.sealing.keys import CredentialKey
    from credferry.agent.store.generations import Store

HEAD_FILE = "audit.json"
KEY_CHANGE = "the host's key has changed: the agent seals everything again with the new key"
LOST = "lost"
"""Replaces the hash of the previous record if the head was there and could not be read."""
# With O_NONBLOCK, opening a FIFO for writing does not wait for a reader.
_SENT_FLAGS = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_FACILITY_AUTHPRIV = 10
_SENDER = ("SYSLOG_IDENTIFIER=credferry", f"SYSLOG_FACILITY={_FACILITY_AUTHPRIV}")


class Head(msgspec.Struct, frozen=True):
    """The complete last record of the chain, so that it can be sent again."""

    sequence: Annotated[int, msgspec.Meta(ge=0, lt=2**62)] = 0
    hash: str = ""
    fields: list[Annotated[str, msgspec.Meta(pattern="^[A-Z][A-Z0-9_]*=")]] = []
    key: str = ""
    """Identifies the key that the record was written with; empty in the head of an older agent."""


@dataclass(frozen=True, slots=True)
class Fact:
    """What listeners learn about a record. It contains no names of credentials."""

    event: Event
    vm: str
    run: str
    generation: int | None
    sequence: int


@dataclass(slots=True)
class _Own:
    """The head that this object kept last, and whether it was sent. So the note of that need not be read."""

    head: Head = field(default_factory=Head)
    is_sent: bool = False


@dataclass(frozen=True, slots=True)
class Audit:
    """Writes the audit's records. Every method raises `StoreError` when the head cannot be kept.

    ``listeners`` are called for each record that was kept, in the thread that wrote it. They must not raise.
    ``present_key`` reads the host's present key; it raises `KeyFileError` or `FileNotFoundError`. The first
    thread or process that notices another key writes one record about it. From then on the chain uses that
    key, also for a restart that began under the old key.
    """

    store: Store
    sender: Sender = field(default_factory=Sender)
    listeners: Sequence[Callable[[Fact], None]] = ()
    present_key: Callable[[], CredentialKey] | None = None
    keys: dict[str, CredentialKey] = field(default_factory=dict)
    """Keys that have written records, by `_id`. All writers in one process must share this mapping."""
    _own: _Own = field(default_factory=_Own)

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
        """Write one fact. ``fingerprints`` are those of the credentials that it is about, by name."""
        named = {
            "CREDFERRY_VM": vm,
            "CREDFERRY_RUN": run,
            "CREDFERRY_GENERATION": "" if generation is None else str(generation),
            # So that journalctl -u shows it with the VM's own messages.
            "OBJECT_SYSTEMD_UNIT": unit,
            **(extra or {}),
        }
        fields = _fields(event, message)
        fields += [f"{key}={value}" for key, value in named.items() if value]
        for name, fingerprint in (fingerprints or {}).items():
            fields += [f"CREDFERRY_CREDENTIAL={name}", f"CREDFERRY_FINGERPRINT={name}:{fingerprint}"]
        facts = []
        with self.store.lock("audit.lock"):
            head = self._head()
            is_sent = head == self._own.head and self._own.is_sent
            if head.fields and not is_sent and sent(self.store.state)[1] != head.hash:
                # The process that kept it ended before sending it, or journald did not take it.
                self._send(head)
            key = self._key_after(head)
            if not _is_with(head, key) and event is not Event.HOST_KEY:
                head = self._append(head, key, _fields(Event.HOST_KEY, KEY_CHANGE))
                facts.append(Fact(Event.HOST_KEY, "", "", None, head.sequence))
            head = self._append(head, key, fields)
            facts.append(Fact(event, vm, run, generation, head.sequence))
        for fact in facts:
            for listener in self.listeners:
                listener(fact)

    def _key_after(self, head: Head) -> CredentialKey:
        """The key for the next record: the store's key if it wrote the head, else the host's present key.

        If the host's key cannot be read, the chain keeps the key that wrote the head. The chain does not go
        back to a key that the host had before.
        """
        if _is_with(head, self.store.key) or self.present_key is None:
            return self.store.key
        try:
            return self.present_key()
        except (KeyFileError, FileNotFoundError):
            return self.keys.get(head.key, self.store.key)

    def _append(self, head: Head, key: CredentialKey, fields: Iterable[str]) -> Head:
        """Keep one more record in the chain, send it, and return the new head. The caller holds the lock."""
        fields = [*fields, f"CREDFERRY_SEQUENCE={head.sequence + 1}", f"CREDFERRY_PREVIOUS={head.hash}"]
        digest = chain_hash(key.derive("audit"), fields)
        fields.append(f"CREDFERRY_HASH={digest}")
        kept = Head(head.sequence + 1, digest, fields, _id(key))
        self.keys[kept.key] = key
        self._keep(kept)
        self._send(kept)
        return kept

    def repeat_last(self) -> None:
        """Send the last record again: a crash may have prevented that after the record was kept."""
        with self.store.lock("audit.lock"):
            if (head := self._head()).fields:
                self._send(head)

    def catch_up(self) -> None:
        """Send the records that journald did not take before. Waits no longer than `Sender.send` does."""
        if self.sender.is_behind:
            self.repeat_last()

    def _send(self, head: Head) -> None:
        """Send a record that is kept, and note that it was sent."""
        if not self.sender.send([*head.fields, *_SENDER]):
            return
        self._own.is_sent = head == self._own.head
        path = self.store.state / SENT_FILE
        # Written in place and not fsynced: if the note is lost, the record is sent once more.
        with suppress(OSError):
            try:
                descriptor = os.open(path, _SENT_FLAGS)
            except FileNotFoundError:
                descriptor = os.open(path, _SENT_FLAGS | os.O_CREAT, 0o600)
            try:
                os.pwrite(descriptor, f"{head.sequence:019} {head.hash}\n".encode(), 0)
            finally:
                os.close(descriptor)

    def _head(self) -> Head:
        """The chain's head. The caller holds the lock.

        This reads the file each time. Its inode and times cannot show that no other process has replaced it:
        file systems give freed inodes to new files, and before Linux 6.13 times can be 4 ms or more too old.
        """
        return kept_head(self.store.state) or Head()

    def _keep(self, head: Head) -> None:
        try:
            replace_durably(self.store.state / HEAD_FILE, msgspec.json.encode(head))
            self._own.head, self._own.is_sent = head, False
        except OSError as error:
            raise StoreError(
                f"{self.store.state / HEAD_FILE}: the agent cannot write the number of its last audit "
                f"record: {error.strerror}",
                hint="check that the state directory is writable and has room",
            ) from None


def _fields(event: Event, message: str) -> list[str]:
    # As the journal will hold it: names from the file system may not be valid UTF-8.
    message = message.encode(errors="backslashreplace").decode()
    return [f"MESSAGE={message}", f"MESSAGE_ID={event.value}", f"PRIORITY={event.priority}"]


def _id(key: CredentialKey) -> str:
    return key.derive("audit key id").hex()[:16]


def _is_with(head: Head, key: CredentialKey) -> bool:
    """Whether a head was written with this key. True also for no head, and for one that is lost."""
    if not head.fields:
        return True
    if head.key:
        return head.key == _id(key)
    own = [each for each in head.fields if not each.startswith("CREDFERRY_HASH=")]
    return are_same(chain_hash(key.derive("audit"), own), head.hash)


def kept_head(state: Path) -> Head | None:
    """The last record of the chain, as a state directory keeps it; None if it keeps none.

    A head that cannot be read counts as lost. The next record then says so, and begins a new chain.
    """
    try:
        return msgspec.json.decode(
            read_untrusted(state / HEAD_FILE, limit=_HEAD_MAX, below=state), type=Head
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError):
        # For what msgspec cannot decode, it raises ValueErrors, and RecursionError for deep nesting.
        return Head(hash=LOST)
