# SPDX-License-Identifier: MIT
"""Writing the audit: what is kept, what is sent, and what is sent once more."""

from __future__ import annotations

import os
import re
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from credferry.agent.audit.events import Event
from credferry.agent.audit.records import chain_hash, sent
from credferry.agent.audit.writer import LOST, Audit, kept_head
from credferry.agent.errors import KeyFileError
from credferry.agent.journald import Sender
from credferry.agent.sealing.keys import CredentialKey
from credferry.agent.store.generations import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

KEY = CredentialKey(b"a key of the host's")


class Journal:
    """Where journald would listen, and what it was sent."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "socket"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._listener.bind(str(self.path))
        self._listener.setblocking(False)

    def records(self) -> list[bytes]:
        """What has come since this was asked last."""
        found = []
        while True:
            try:
                found.append(self._listener.recv(65536))
            except BlockingIOError:
                return found

    def numbers(self) -> list[int]:
        """The numbers of these."""
        return [
            int(re.findall(rb"^CREDFERRY_SEQUENCE=(\d+)$", each, re.MULTILINE)[0]) for each in self.records()
        ]

    def close(self) -> None:
        """Listen no more."""
        self._listener.close()


@pytest.fixture
def journal() -> Iterator[Journal]:
    """A socket of its own: its path may not be long."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        made = Journal(Path(directory))
        yield made
        made.close()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A state directory with nothing in it."""
    return Store(tmp_path / "state", KEY)


def test_what_is_sent_is_written_down(store: Store, journal: Journal) -> None:
    """After each record its number and hash are known to have been sent; nothing is sent twice."""
    audit = Audit(store, Sender(str(journal.path)))
    assert (kept_head(store.state), sent(store.state)) == (None, (0, ""))
    for number in (1, 2, 3):
        audit.record(Event.HELD, "held", vm="web")
        head = kept_head(store.state)
        assert head
        assert sent(store.state) == (number, head.hash) == (head.sequence, head.hash)
    Audit(store, Sender(str(journal.path))).record(Event.RELEASED, "released", vm="web")
    assert journal.numbers() == [1, 2, 3, 4]


def always(real: Callable[..., os.stat_result], file: str, status: os.stat_result) -> object:
    """A function as ``real`` that has this one status of the file, whatever becomes of it."""
    return lambda path, **named: status if str(path) == file else real(path, **named)


def test_a_head_that_another_process_wrote(
    store: Store, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No number is used twice, even if the head's file has its former inode and times after the writes.

    ext4 gives a file the inode of one that was just removed, and before Linux 6.13 all writes within 4 ms
    have one time. This test cannot make a kernel do so: here every status of the file is the first one.
    """
    ours, theirs = (Audit(store, Sender(str(journal.path))) for _ in range(2))
    ours.record(Event.HELD, "held", vm="web")
    head = store.state / "audit.json"
    status = head.stat()
    for real in (os.stat, os.lstat):
        monkeypatch.setattr(os, real.__name__, always(real, str(head), status))
    for _ in range(2):
        theirs.record(Event.HELD, "held", vm="web")
    ours.record(Event.HELD, "held", vm="web")
    assert journal.numbers() == [1, 2, 3, 4]


def test_a_record_that_its_writer_could_not_send(store: Store, journal: Journal) -> None:
    """Whoever writes next sends it first: he who kept it may have come to an end right then."""
    Audit(store, Sender("/nowhere/socket")).record(Event.HELD, "held", vm="web")
    assert sent(store.state) == (0, "")
    Audit(store, Sender(str(journal.path))).record(Event.RELEASED, "released", vm="web")
    assert journal.numbers() == [1, 2]
    assert sent(store.state)[0] == 2


def test_records_that_wait_are_not_doubled(store: Store, journal: Journal) -> None:
    """Where there is no journal for a while, each record waits once, and all come in their order."""
    audit = Audit(store, Sender(str(journal.path)))
    elsewhere = journal.path.with_name("elsewhere")
    journal.path.rename(elsewhere)
    for _ in range(4):
        audit.record(Event.HELD, "held", vm="web")
    audit.repeat_last()
    elsewhere.rename(journal.path)
    audit.record(Event.HELD, "held", vm="web")
    assert journal.numbers() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "content",
    [b"", b"nonsense", b"0000000000000000009 " + b"z" * 64 + b"\n", b"\xff" * 84],
    ids=["empty", "words", "no hash", "no text"],
)
def test_a_spoiled_note_of_what_was_sent(store: Store, journal: Journal, content: bytes) -> None:
    """It counts as none: the last record is sent once more, and the note is right again."""
    Audit(store, Sender(str(journal.path))).record(Event.HELD, "held", vm="web")
    (store.state / "audit.sent").write_bytes(content)
    audit = Audit(store, Sender(str(journal.path)))  # of another process
    audit.record(Event.HELD, "held", vm="web")
    assert journal.numbers() == [1, 1, 2]
    (store.state / "audit.sent").unlink()
    audit.repeat_last()
    assert sent(store.state)[0] == 2


def test_a_spoiled_head(store: Store, journal: Journal) -> None:
    """The chain begins anew, and says so: the first record names no hash but that the head was lost."""
    audit = Audit(store, Sender(str(journal.path)))
    audit.record(Event.HELD, "held", vm="web")
    (store.state / "audit.json").write_bytes(b"{")
    audit.record(Event.HELD, "held", vm="web")
    assert f"\nCREDFERRY_PREVIOUS={LOST}\n".encode() in journal.records()[-1]


def test_a_message_that_is_no_text(store: Store, journal: Journal) -> None:
    """Its hash is over what journald gets, not over what cannot be encoded."""
    Audit(store, Sender(str(journal.path))).record(Event.SOURCE_LOST, "/run/\udcff")
    lines = journal.records()[0].decode().splitlines()
    head = kept_head(store.state)
    assert head
    own = [line for line in lines if not line.startswith(("SYSLOG_", "CREDFERRY_HASH="))]
    assert "MESSAGE=/run/\\udcff" in own
    assert chain_hash(KEY.derive("audit"), own) == head.hash


def test_the_chain_goes_back_to_no_key_that_the_host_had_before(store: Store, journal: Journal) -> None:
    """A writer notices the host's newest key, which then cannot be read: records go on with that key.

    Otherwise the chain would change its key twice, and `credferry audit --verify` would call what stands
    between the two changes edited.
    """
    newest, readable = CredentialKey(b"the newest"), True

    def present_key() -> CredentialKey:
        if not readable:
            raise KeyFileError("mode is 0644", hint="chmod 0400")
        return newest

    keys: dict[str, CredentialKey] = {}
    sender = Sender(str(journal.path))
    Audit(store, sender, (), present_key, keys).record(Event.HELD, "held", vm="web")
    between = Store(store.state, CredentialKey(b"another"))
    Audit(between, sender, (), present_key, keys).record(Event.RELEASED, "released", vm="web")
    head = kept_head(store.state)
    assert head is not None
    readable = False
    for same in (store, between):
        Audit(same, sender, (), present_key, keys).record(Event.HELD, "held", vm="web")
    last = kept_head(store.state)
    assert last is not None
    assert (last.key, last.sequence) == (head.key, head.sequence + 2)
