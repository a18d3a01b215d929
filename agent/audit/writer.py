# SPDX-License-Identifier: MIT
"""The audit: writes facts to journald, as one chain of records.

Each record of ours carries a sequence number and a keyed hash over itself and the record before; the head
of that chain is kept, fsynced, in the state directory before the record is sent. So a gap, an edit, or a
lost tail shows. A crash between the two leaves a record unsent: the last one is therefore sent again, to
the letter, at each start, and before the next record where it is not known to have been sent; readers count
it once. What was sent is written down as well, so that a record that was never sent is not taken for lost.
"""

from __future__ import annotations

import hmac
import os
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import msgspec

from credferry.agent.audit.events import Event
from credferry.agent.audit.records import _HEAD_MAX, SENT_FILE, chain_hash, sent
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
KEY_CHANGE = "the host's key is another: all is sealed anew"
LOST = "lost"
"""Stands for the hash of the record before, where the head was there and could not be read."""
# A FIFO keeps nobody waiting who writes there.
_SENT_FLAGS = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_FACILITY_AUTHPRIV = 10
_SENDER = ("SYSLOG_IDENTIFIER=credferry", f"SYSLOG_FACILITY={_FACILITY_AUTHPRIV}")


class Head(msgspec.Struct, frozen=True):
    """The last record of the chain, whole, so that it can be sent again."""

    sequence: Annotated[int, msgspec.Meta(ge=0, lt=2**62)] = 0
    hash: str = ""
    fields: list[Annotated[str, msgspec.Meta(pattern="^[A-Z][A-Z0-9_]*=")]] = []
    key: str = ""
    """What tells the key that it was written with from another; empty in the head of an older agent."""


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
    ``present_key`` reads the host's key as it is now; it raises `KeyFileError` or `FileNotFoundError`. The
    chain changes its key once, by a record that says so, whichever thread or process notices first: a
    restart that began under the key before is recorded with the new one.
    """

    store: Store
    sender: Sender = field(default_factory=Sender)
    listeners: Sequence[Callable[[Fact], None]] = ()
    present_key: Callable[[], CredentialKey] | None = None
    keys: dict[str, CredentialKey] = field(default_factory=dict)
    """Keys that have written records, by `_id`; to be shared by all that write in one process."""

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
        fields = _fields(event, message)
        fields += [f"{key}={value}" for key, value in named.items() if value]
        for name, fingerprint in (fingerprints or {}).items():
            fields += [f"CREDFERRY_CREDENTIAL={name}", f"CREDFERRY_FINGERPRINT={name}:{fingerprint}"]
        facts = []
        with self.store.lock("audit.lock"):
            head = self._head()
            if head.fields and sent(self.store.state)[1] != head.hash:
                # Whoever kept it came to an end before sending it, or found no journal.
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
        """The key for the record after a head: where the store's has not written that, the host's of now.

        Where the host's cannot be read, the chain stays with the key that has written the head: it does not
        go back to one that the host had before.
        """
        if _is_with(head, self.store.key) or self.present_key is None:
            return self.store.key
        try:
            return self.present_key()
        except (KeyFileError, FileNotFoundError):
            return self.keys.get(head.key, self.store.key)

    def _append(self, head: Head, key: CredentialKey, fields: Iterable[str]) -> Head:
        """Keep one more record in the chain, and send it; the head from then on. Under the lock."""
        fields = [*fields, f"CREDFERRY_SEQUENCE={head.sequence + 1}", f"CREDFERRY_PREVIOUS={head.hash}"]
        digest = chain_hash(key.derive("audit"), fields)
        fields.append(f"CREDFERRY_HASH={digest}")
        kept = Head(head.sequence + 1, digest, fields, _id(key))
        self.keys[kept.key] = key
        self._keep(kept)
        self._send(kept)
        return kept

    def repeat_last(self) -> None:
        """Send the last record again: a crash may have come between keeping and sending it."""
        with self.store.lock("audit.lock"):
            if (head := self._head()).fields:
                self._send(head)

    def catch_up(self) -> None:
        """Send what could not be sent, where journald takes it by now; without a wait where it does not."""
        if self.sender.is_behind:
            self.repeat_last()

    def _send(self, head: Head) -> None:
        """Send a record that is kept, and write down that it was."""
        if not self.sender.send([*head.fields, *_SENDER]):
            return
        path = self.store.state / SENT_FILE
        # In place and not fsynced: where this is lost, the record is sent once more.
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
        return kept_head(self.store.state) or Head()

    def _keep(self, head: Head) -> None:
        try:
            replace_durably(self.store.state / HEAD_FILE, msgspec.json.encode(head))
        except OSError as error:
            raise StoreError(
                f"{self.store.state / HEAD_FILE}: the audit's head cannot be kept: {error.strerror}",
                hint="the state directory must be writable and have room",
            ) from None


def _fields(event: Event, message: str) -> list[str]:
    # As the journal will hold it: names from the file system may be no text.
    message = message.encode(errors="backslashreplace").decode()
    return [f"MESSAGE={message}", f"MESSAGE_ID={event.value}", f"PRIORITY={event.priority}"]


def _id(key: CredentialKey) -> str:
    return key.derive("audit key id").hex()[:16]


def _is_with(head: Head, key: CredentialKey) -> bool:
    """Whether a head was written with a key; none, or one that could not be read, may have been."""
    if not head.fields:
        return True
    if head.key:
        return head.key == _id(key)
    own = [each for each in head.fields if not each.startswith("CREDFERRY_HASH=")]
    return hmac.compare_digest(chain_hash(key.derive("audit"), own), head.hash)


def kept_head(state: Path) -> Head | None:
    """The last record of the chain, as a state directory keeps it; None where it keeps none.

    One that cannot be read counts as lost; beginning anew shows in the chain as what it is.
    """
    try:
        return msgspec.json.decode(
            read_untrusted(state / HEAD_FILE, limit=_HEAD_MAX, below=state), type=Head
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError):
        # msgspec has three exceptions for what it cannot decode, ValueErrors but for deep nesting.
        return Head(hash=LOST)
