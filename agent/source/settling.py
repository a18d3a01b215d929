# SPDX-License-Identifier: MIT
"""When content is settled: at once after the swap of a symlink; after writes in place, once they stop."""

from __future__ import annotations

import hmac
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from credferry.agent.source.snapshot import Snapshot
from credferry.launcher.handoff import Secret

if TYPE_CHECKING:
    from collections.abc import Collection, Container, Iterable, Mapping

    from credferry.agent.config.model import Config, VmConfig
    from credferry.agent.source.published import Publication
    from credferry.agent.source.snapshot import SourceGeneration


def _key() -> bytes:
    return os.urandom(32)


@dataclass(slots=True)
class Changes:
    """Remembers a digest of each VM's secrets in each source. Its key never leaves the process."""

    _key: bytes = field(default_factory=_key, repr=False)
    _digests: dict[tuple[str, str], bytes] = field(default_factory=dict)
    """By source and VM."""
    _generations: dict[str, SourceGeneration] = field(default_factory=dict)

    def since_last(self, vms: Collection[VmConfig], published: Publication) -> list[VmConfig]:
        """The VMs whose secrets a swap has changed since the last call. The first call returns none.

        A write in place is not counted as a change, because it may not be complete yet. What was known of a
        source that cannot be read now stays known.
        """
        swapped = set()
        for source, snapshot in published.snapshots.items():
            if snapshot.generation.is_swap_of(self._generations.get(source)):
                swapped.add(source)
            self._generations[source] = snapshot.generation
        return [vm for vm in vms if self._has_changed(vm, published, swapped)]

    def _has_changed(self, vm: VmConfig, published: Publication, swapped: Container[str]) -> bool:
        has_changed = False
        for source, names in vm.secrets.items():
            snapshot = published.sources[source]
            if isinstance(snapshot, Snapshot):
                now = _digest(self._key, snapshot, names)
                before = self._digests.get((source, vm.name), now)
                has_changed = has_changed or (source in swapped and before != now)
                self._digests[source, vm.name] = now
        return has_changed


def _digest(key: bytes, snapshot: Snapshot, names: Iterable[str]) -> bytes:
    """A digest of what a source holds under some names."""
    parts = []
    for name in sorted(names):
        value = snapshot.values[name]
        content = value.reveal() if isinstance(value, Secret) else value.encode()
        parts += [b"%d %d " % (isinstance(value, Secret), len(content)), content]
    return hmac.digest(key, b"".join(parts), "sha256")


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
    _key: bytes = field(default_factory=_key, repr=False)
    _settlers: dict[str, Settler] = field(default_factory=dict)

    def left(self, published: Publication, now: float) -> dict[str, float]:
        """The sources that have not settled, each with the seconds to wait for it."""
        found = {}
        for source, snapshot in published.snapshots.items():
            of = self.config.source_of(source)
            settler = self._settlers.setdefault(source, Settler(of.quiet_seconds, of.quiet_max_seconds))
            content = _digest(self._key, snapshot, snapshot.values)
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
