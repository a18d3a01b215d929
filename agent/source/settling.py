# SPDX-License-Identifier: MIT
"""When content is settled: at once after the swap of a symlink; after writes in place, once they stop."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from credferry.agent.digests import Mac
from credferry.launcher.handoff import Secret

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from credferry.agent.config.model import Config, VmConfig
    from credferry.agent.source.published import Publication
    from credferry.agent.source.reading import Problem
    from credferry.agent.source.snapshot import Snapshot, SourceGeneration


def _mac() -> Mac:
    return Mac(os.urandom(32))


@dataclass(slots=True)
class Changes:
    """Remembers a hash of each secret in each source.

    It is Python's own hash of bytes, SipHash with a key of the process (PEP 456). That is ten times faster
    than a digest. If two values had the same one, the look at all VMs would find the change.
    """

    _hashes: dict[str, dict[str, int]] = field(default_factory=dict, repr=False)
    """By source and name."""
    _generations: dict[str, SourceGeneration] = field(default_factory=dict)

    def since_last(self, vms: Collection[VmConfig], published: Publication) -> list[VmConfig]:
        """The VMs whose secrets a swap has changed since the last call. The first call returns none.

        A write in place is not counted as a change, because it may not be complete yet. What was known of a
        source that cannot be read now stays known.
        """
        changed: dict[str, set[str]] = {}
        for source, snapshot in published.snapshots.items():
            now = {name: _hash(value) for name, value in snapshot.values.items()}
            before = self._hashes.get(source, now)
            if snapshot.generation.is_swap_of(self._generations.get(source)):
                changed[source] = {name for name, each in now.items() if before.get(name, each) != each}
            self._generations[source], self._hashes[source] = snapshot.generation, now
        if not any(changed.values()):
            return []
        return [
            vm
            for vm in vms
            if any(not names.isdisjoint(vm.secrets.get(source, ())) for source, names in changed.items())
        ]


def _hash(value: Secret | Problem) -> int:
    return hash(value.reveal() if isinstance(value, Secret) else value)


def _digest(mac: Mac, snapshot: Snapshot, names: Iterable[str]) -> bytes:
    """A digest of what a source holds under some names."""
    parts = []
    for name in sorted(names):
        value = snapshot.values[name]
        content = value.reveal() if isinstance(value, Secret) else value.encode()
        parts += [b"%d %d " % (isinstance(value, Secret), len(content)), content]
    return mac.of(b"".join(parts))


@dataclass(slots=True)
class Settler:
    """Remembers the content of the last call. The caller passes the time: monotonic, in seconds."""

    quiet_seconds: float
    quiet_max_seconds: float
    _generation: SourceGeneration | None = field(default=None, init=False)
    _content: object = field(default=None, init=False)
    _same_since: float = field(default=0.0, init=False)
    _waiting_since: float | None = field(default=None, init=False)
    is_restless: bool = field(default=False, init=False)
    """Whether the content did not stop changing the last time that it was waited for."""

    def wait(self, generation: SourceGeneration, content: object, now: float) -> float:
        """The seconds to wait before this content may be used; 0.0 if it is settled.

        ``content`` is any object that compares equal if, and only if, the same was read.
        """
        swapped = generation.is_swap_of(self._generation)
        if generation != self._generation or content != self._content:
            if self._waiting_since is None:
                self._waiting_since = now
            self._generation, self._content, self._same_since = generation, content, now
        if swapped or self._waiting_since is None:
            self._waiting_since, self.is_restless = None, self.is_restless and not swapped
            return 0.0
        until_quiet = self._same_since + self.quiet_seconds - now
        left = min(until_quiet, self._waiting_since + self.quiet_max_seconds - now)
        if left <= 0:
            self._waiting_since, self.is_restless = None, until_quiet > 0
            return 0.0
        return left


@dataclass(slots=True)
class Settling:
    """Settles each source by itself. Its key never leaves the process."""

    config: Config
    _mac: Mac = field(default_factory=_mac)
    _settlers: dict[str, Settler] = field(default_factory=dict)

    def left(self, published: Publication, now: float) -> dict[str, float]:
        """The sources that have not settled, each with the seconds to wait for it."""
        found = {}
        for source, snapshot in published.snapshots.items():
            of = self.config.source_of(source)
            settler = self._settlers.setdefault(source, Settler(of.quiet_seconds, of.quiet_max_seconds))
            content = _digest(self._mac, snapshot, snapshot.values)
            if left := settler.wait(snapshot.generation, content, now):
                found[source] = left
        return found

    def steady(self, unsettled: Mapping[str, float]) -> dict[str, float]:
        """Those of them that settle. Only they may hold up VMs of other sources.

        Two sources that never stop changing would hold up all VMs without an end: when one of them may be
        used, the other may not.
        """
        return {source: left for source, left in unsettled.items() if not self._settlers[source].is_restless}


def seconds_left(vm: VmConfig, unsettled: Mapping[str, float]) -> float:
    """How many seconds a VM's values have yet to settle; 0.0 if all its sources have settled."""
    return max((unsettled[source] for source in vm.secrets if source in unsettled), default=0.0)
