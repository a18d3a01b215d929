# SPDX-License-Identifier: MIT
"""Which VMs something else is published for than at the last look: they go first."""

from __future__ import annotations

import hmac
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from launcher.handoff import Secret

if TYPE_CHECKING:
    from collections.abc import Collection

    from agent.config import VmConfig
    from agent.source import Generation, Snapshot


def _key() -> bytes:
    return os.urandom(32)


@dataclass(slots=True)
class Changes:
    """Remembers what was published for each VM: a digest of it, by a key that never leaves the process."""

    _key: bytes = field(default_factory=_key, repr=False)
    _digests: dict[str, bytes] = field(default_factory=dict)
    _generation: Generation | None = None

    def since_last(self, vms: Collection[VmConfig], snapshot: Snapshot) -> list[VmConfig]:
        """The VMs whose secrets a swap has changed since this was last asked; none the first time.

        What was written in place counts as no change: it may not be whole yet.
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
