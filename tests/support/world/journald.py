# SPDX-License-Identifier: MIT
"""A modelled journal, which keeps what it takes, and a sender, which keeps what it did not take."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from credferry.agent.audit import chain, records
from credferry.agent.audit import writer as journal
from credferry.agent.audit.events import Event
from credferry.agent.journald import Sender

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from credferry.agent.sealing.keys import CredentialKey


@dataclass(slots=True)
class ModelJournal:
    """``effect`` is called before each record that is taken."""

    effect: Callable[[], None]
    told: Callable[[dict[str, str]], None]
    """Called with each record, the first time that it is taken."""
    is_taking: bool = True
    is_gappy: bool = False
    """Whether an agent has died that had more than one record still to send."""
    records: list[list[str]] = field(default_factory=list)
    _known: set[str] = field(default_factory=set)

    def take(self, fields: Sequence[str]) -> bool:
        """Take a record, if it takes any."""
        if not self.is_taking:
            return False
        self.effect()
        self.records.append(list(fields))
        known = dict(each.partition("=")[::2] for each in fields)
        if known["CREDFERRY_HASH"] not in self._known:
            self._known.add(known["CREDFERRY_HASH"])
            self.told(known)
        return True

    def findings(self, state: Path, key: CredentialKey) -> tuple[str, ...]:
        """What ``credferry audit --verify`` finds wrong with all that was taken."""
        head = journal.kept_head(state)
        if head is None:
            return ()
        number, _ = records.sent(state)
        kept = chain.Kept(head.sequence, head.hash, number, head.sequence)
        links = [link(fields, number) for number, fields in enumerate(self.records)]
        return chain.verify(links, key.derive("audit"), kept).findings


class ModelSender(Sender):
    """One agent's sender. Its queue is gone with the agent."""

    def __init__(self, journal_of_host: ModelJournal) -> None:
        super().__init__()
        self._journal = journal_of_host
        self._queue: deque[list[str]] = deque()

    @property
    def is_behind(self) -> bool:
        """See `Sender`."""
        return bool(self._queue)

    @property
    def loses(self) -> bool:
        """Whether records are lost where the agent dies now: only the last one is kept elsewhere."""
        return len(self._queue) > 1

    def send(self, fields: Sequence[str]) -> bool:
        """See `Sender`."""
        record = list(fields)
        if record not in self._queue:
            self._queue.append(record)
        while self._queue and self._journal.take(self._queue[0]):
            self._queue.popleft()
        return not self._queue


def link(fields: list[str], number: int) -> chain.Link:
    """A record that was sent, as the chain's verification reads it from the journal."""
    known = dict(each.partition("=")[::2] for each in fields)
    own = [
        each
        for each in fields
        if (each.startswith("CREDFERRY_") or each.partition("=")[0] in records._CHAINED)
        and not each.startswith("CREDFERRY_HASH=")
    ]
    return chain.Link(
        int(known["CREDFERRY_SEQUENCE"]),
        known["CREDFERRY_HASH"],
        known.get("CREDFERRY_PREVIOUS", ""),
        tuple(own),
        datetime.fromtimestamp(number, UTC),
        Event(known["MESSAGE_ID"]).label,
    )
