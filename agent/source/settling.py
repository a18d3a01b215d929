# SPDX-License-Identifier: MIT
"""When content is settled: at once after the swap of a symlink; after writes in place, once they stop."""

from __future__ import annotations

import hmac
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from credferry.launcher.handoff import Secret

if TYPE_CHECKING:
    from collections.abc import Collection

    from credferry.agent.config.model import VmConfig
    from credferry.agent.source.snapshot import Snapshot, SourceGeneration


def _key() -> bytes:
    return os.urandom(32)


@dataclass(slots=True)
class Changes:
    """Remembers a digest of each VM's published secrets. Its key never leaves the process."""

    _key: bytes = field(default_factory=_key, repr=False)
    _digests: dict[str, bytes] = field(default_factory=dict)
    _generation: SourceGeneration | None = None

    def since_last(self, vms: Collection[VmConfig], snapshot: Snapshot) -> list[VmConfig]:
        """The VMs whose secrets a swap has changed since the last call. The first call returns none.

        A write in place is not counted as a change, because it may not be complete yet.
        """
        before, self._digests = self._digests, {vm.name: self._digest(vm, snapshot) for vm in vms}
        is_swap = snapshot.generation.is_swap_of(self._generation)
        self._generation = snapshot.generation
        if not is_swap:
            return []
        now = self._digests
        return [vm for vm in vms if before.get(vm.name, now[vm.name]) != now[vm.name]]

    def _digest(self, vm: VmConfig, snapshot: Snapshot) -> bytes:
        parts = []
        for credential in vm.credentials.values():
            if credential.secret is not None:
                value = snapshot.values[credential.secret]
                content = value.reveal() if isinstance(value, Secret) else value.encode()
                parts += [b"%d %d " % (isinstance(value, Secret), len(content)), content]
        return hmac.digest(self._key, b"".join(parts), "sha256")


@dataclass(slots=True)
class Settler:
    """Remembers the content of the last call. The caller passes the time: monotonic, in seconds."""

    quiet_seconds: float
    quiet_max_seconds: float
    _generation: SourceGeneration | None = field(default=None, init=False)
    _content: object = field(default=None, init=False)
    _same_since: float = field(default=0.0, init=False)
    _waiting_since: float | None = field(default=None, init=False)

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
            self._waiting_since = None
            return 0.0
        left = min(
            self._same_since + self.quiet_seconds - now,
            self._waiting_since + self.quiet_max_seconds - now,
        )
        if left <= 0:
            self._waiting_since = None
            return 0.0
        return left
