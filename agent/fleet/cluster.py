# SPDX-License-Identifier: MIT
"""Which etcd cluster this host keeps to, and how far that had come when this host last saw it.

An etcd that was made anew, or restored from a snapshot, may have lost slots that are held. Other hosts would
take them a second time, and more VMs than the limit would be down. Such an etcd has another cluster ID, or
is at an earlier revision: one that is made anew with the same members and token has the same ID again.
"""

from __future__ import annotations

import math
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from credferry.agent.errors import StoreError
from credferry.agent.fleet.transport import EngineFault

if TYPE_CHECKING:
    from collections.abc import Callable

HINT: Final = (
    "if etcd was restored, replaced or made anew, no slot may be in use; then, on each host: "
    "credferry fleet forget-cluster"
)
AHEAD_MAX: Final = 1 << 44
"""How far ahead an etcd may be of what was last seen: 50 years of 10,000 writes a second."""

KEEP_SECONDS: Final = 60.0
"""How long the record may lag behind the last answer. Each write of it waits for the disk."""
_WRITING: Final = threading.RLock()
"""A record has one writer at a time: the engine's thread, or the loop's thread where an engine ends."""


class Seen(NamedTuple):
    """What an answer says of the etcd that it is from."""

    cluster: str
    revision: int


class ClusterRecord(Protocol):
    """Where the cluster is kept from one run of the agent to the next. Methods raise `StoreError`."""

    def read(self) -> tuple[str, int] | None:
        """Cluster and revision as last written; None if there are none, or if they were removed."""
        ...

    def write(self, cluster: str, revision: int) -> None:
        """Write what `read` returns, so that it survives a power failure."""
        ...


def fault_of(known: Seen | None, now: Seen) -> EngineFault | None:
    """Why an answer cannot be of the etcd that is known, or of any if none is; None if it can."""
    if known is None:
        known = Seen(now.cluster, 0)
    if now.cluster != known.cluster:
        return EngineFault("it belongs to another cluster than this host has used so far", HINT)
    if now.revision < known.revision:
        return EngineFault(
            f"it has lost changes: it is at revision {now.revision}, "
            f"and this host has seen {known.revision}",
            HINT,
        )
    if now.revision > known.revision + AHEAD_MAX:
        # One such answer, believed, would have all others "lose changes" from then on.
        return EngineFault(
            f"it says that it is at revision {now.revision}, which no etcd reaches",
            "this member is at fault: take it out of `endpoints` in [fleet]",
        )
    return None


@dataclass(slots=True)
class Known:
    """The cluster that an engine keeps to. Without a record it keeps to it in memory alone."""

    record: ClusterRecord | None = None
    seen: Seen | None = None
    """What its last answer said; None before the first one."""
    is_sure: bool = False
    """Whether the last answer was of the cluster. If not, read before you write: a write adds a revision,
    and an etcd that was made anew is known by its low one."""
    monotonic: Callable[[], float] = time.monotonic
    _kept: Seen | None = None
    """What the record said when this last read or wrote it."""
    _kept_at: float = -math.inf

    def check(self, now: Seen) -> None:
        """Accept an answer, or raise `EngineFault`. The first answer of all decides for the cluster."""
        self.is_sure = False
        if fault := self._fault(now):
            raise fault
        self.seen, self.is_sure = now, True

    def _fault(self, now: Seen) -> EngineFault | None:
        """Why an answer does not count. Writes the record if there is none."""
        fault = fault_of(self.seen, now)
        if self.record is None or (self.seen is not None and fault is None):
            return fault
        try:
            kept = self.record.read()
            if kept is not None:
                return fault_of(self.seen or Seen(*kept), now)
            fault = fault_of(None, now)
            if fault is None:  # nothing was used so far, or an operator has had it forgotten
                self._write(self.record, now)
        except StoreError as error:
            return EngineFault(f"this host cannot tell which cluster it used: {error}", error.hint)
        return fault

    def keep(self) -> None:
        """Have the record say how far the cluster has come, as a slot is taken. Raises `EngineFault`."""
        if self.record is None or self.seen is None:
            return
        try:
            self._write(self.record, self.seen)
        except StoreError as error:
            raise EngineFault(
                f"this host cannot write down what it saw of it: {error}", error.hint
            ) from None

    def keep_up(self) -> None:
        """As `write_down`, if the record lags behind, and is not of the last minute."""
        if self.seen != self._kept and self.monotonic() - self._kept_at >= KEEP_SECONDS:
            self.write_down()

    def write_down(self) -> None:
        """Have a record of this cluster say how far it has come. One that was forgotten stays so.

        No slot waits for it, so a disk without room is no fault: what was seen is written later.
        """
        record, seen = self.record, self.seen
        if record is None or seen is None or seen == self._kept:
            return
        self._kept_at = self.monotonic()
        with suppress(StoreError), _WRITING:
            kept = record.read()
            if kept is not None and kept[0] == seen.cluster and kept[1] < seen.revision:
                self._write(record, seen)

    def _write(self, record: ClusterRecord, now: Seen) -> None:
        with _WRITING:
            record.write(*now)
        self._kept, self._kept_at = now, self.monotonic()
