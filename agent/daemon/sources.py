# SPDX-License-Identifier: MIT
"""Reads the sources for the loop: what is published, what has changed, and what has not settled yet."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from credferry.agent.audit.events import Event
from credferry.agent.errors import describe
from credferry.agent.source.settling import Changes, Settling, seconds_left

if TYPE_CHECKING:
    from collections.abc import Mapping

    from credferry.agent.config.model import VmConfig
    from credferry.agent.log import Conditions
    from credferry.agent.reconcile.observer import Look
    from credferry.agent.rollout.session import Session
    from credferry.agent.source.published import Publication
    from credferry.agent.source.watches import Watches

SETTLES = "until its secrets are written completely"


@dataclass(frozen=True, slots=True)
class Reading:
    """What all sources held at one moment."""

    published: Publication
    unsettled: Mapping[str, float]
    """The sources that have not settled, each with the seconds to wait for it."""
    changed: tuple[VmConfig, ...]
    """The VMs whose secrets have changed since the last reading, and have settled."""


class Sources:
    """The sources of one session. Keeps from one reading to the next what they have shown."""

    def __init__(self, session: Session, watches: Watches, conditions: Conditions) -> None:
        self._session = session
        self._watches = watches
        self._conditions = conditions
        self._changes = Changes()
        self._settling = Settling(session.config)
        vms = session.config.vms.values()
        self.is_ordered = bool(session.config.rollout.canaries) or any(vm.after for vm in vms)
        """Whether some VMs wait for others."""

    def read(self, now: float, *, may_go_first: bool) -> Reading:
        """Read all sources. ``now`` is monotonic.

        All is watched before it is read, so a later change causes a hint. With ``may_go_first``, what has
        changed comes first: then nothing new is watched, and the caller must read again soon, without it.
        """
        if not may_go_first:
            self._watches.arm()
        reading = self._read(now)
        if may_go_first and not reading.changed and self._watches.arm():
            # A change between the reading and the new watches has caused no hint.
            return self._read(now)
        return reading

    def _read(self, now: float) -> Reading:
        vms = self._session.config.vms.values()
        published = self._session.observer.published(vms)
        changed = self._changes.since_last(vms, published)
        unsettled = self._settling.left(published, now)
        return Reading(published, unsettled, tuple(vm for vm in changed if not seconds_left(vm, unsettled)))

    def tell_lost(self, published: Publication, now: float) -> None:
        """Record each source that cannot be read, once. Raises `StoreError`."""
        for source, error in published.errors.items():
            if self._conditions.begin(_condition(source), str(error), now):
                vms = [vm.name for vm in self._session.config.vms.values() if source in vm.secrets]
                whose = (
                    f"the VMs that use it ({', '.join(vms)}) keep"
                    if source
                    else "every VM that uses it keeps"
                )
                self._session.audit.record(
                    Event.SOURCE_LOST,
                    f"cannot read {_called(source)}; {whose} the previous secrets: {describe(error)}",
                )

    def tell_back(self, published: Publication, now: float) -> None:
        """Record each source that can be read again. Raises `StoreError`."""
        for source in published.snapshots:
            if counted := self._conditions.end(_condition(source), now):
                path = self._session.config.source_of(source).path
                name = f"source {source} ({path})" if source else f"source {path}"
                message = f"{name} can be read again; it was unavailable for {counted}"
                self._session.audit.record(Event.SOURCE_BACK, message)

    def settled(self, look: Look, unsettled: Mapping[str, float]) -> Look:
        """The same look, in which VMs with new values that have not settled wait."""
        due = [each.vm for each in look.decisions if each.seal]
        lefts = {vm.name: seconds_left(vm, unsettled) for vm in due}
        if not any(lefts.values()):
            return look
        if self.is_ordered:
            steady = self._settling.steady(unsettled)
            longest = max(seconds_left(vm, steady) for vm in due)
            lefts = {name: max(left, longest) for name, left in lefts.items()}
        decisions = (
            replace(each, seal=None, way=None, why="", reasons=(SETTLES,), wait_seconds=left)
            if (left := lefts.get(each.vm.name))
            else each
            for each in look.decisions
        )
        return replace(look, decisions=tuple(decisions))


def _condition(source: str) -> str:
    """The key in `Conditions` of a source that cannot be read."""
    return f"source {source}" if source else "source"


def _called(source: str) -> str:
    return f"source {source}" if source else "the source"
