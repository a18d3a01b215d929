# SPDX-License-Identifier: MIT
"""Which etcd cluster this host keeps to, and how far that had come when this host last saw it.

An etcd that was made anew, or restored from a snapshot, may have lost slots that are held. Other hosts would
take them a second time, and more VMs than the limit would be down. Such an etcd has another cluster ID, or
is at an earlier revision: one that is made anew with the same members and token has the same ID again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from credferry.agent.errors import StoreError
from credferry.agent.fleet.transport import EngineFault

HINT: Final = (
    "if etcd was restored, replaced or made anew, no slot may be in use; then, on each host: "
    "credferry fleet forget-cluster"
)
AHEAD_MAX: Final = 1 << 44
"""How far ahead an etcd may be of what was last seen: 50 years of 10,000 writes a second."""


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
                self.record.write(*now)
        except StoreError as error:
            return EngineFault(f"this host cannot tell which cluster it used: {error}", error.hint)
        return fault

    def keep(self) -> None:
        """Have the record say how far the cluster has come. Raises `EngineFault`."""
        if self.record is None or self.seen is None:
            return
        try:
            self.record.write(*self.seen)
        except StoreError as error:
            raise EngineFault(
                f"this host cannot write down what it saw of it: {error}", error.hint
            ) from None
