# SPDX-License-Identifier: MIT
"""Guests of the model world: what takes a push in each VM, and in how many ways that ends."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from credferry.launcher.errors import Exit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from credferry.launcher.handoff import Manifest

PUSH_RESULTS = (
    *("done", "absent", "refused", "undone", "unanswered", "lost", "forged", "joined", "unproved"),
    *("killed", "rebooted"),
)
"""How a push can end.

``unanswered``: the guest takes it, and its answer is lost. ``lost``: it is cut short. ``forged``: a
neighbour answers in the guest's place. ``joined``: the agent's job joins an earlier push, and is done.
``unproved``: the guest takes it, and there is no room for root's proof. ``killed``: the push unit dies in
the midst of it. ``rebooted``: the VM is started again meanwhile.
"""

FAILING = {b"bad", b"flap"}
"""Values with which no unit starts."""


@dataclass(slots=True)
class ModelGuest:
    """One guest. It keeps what it holds until its VM is started again."""

    takes_pushes: bool = False
    generation: int = 0
    held: Mapping[str, bytes] = field(default_factory=dict)
    next_result: str = "done"
    is_trusted: bool = True
    """Whether its last push since its start has ended well."""
    is_noted: bool = True
    """Whether the agent was surely able to note how its last push ended."""
    touched: int = 0
    """How often pushes have had units restarted."""

    def boot(self, manifest: Manifest, values: Mapping[str, bytes]) -> None:
        """Begin anew with what the VM was started on."""
        self.takes_pushes, self.generation, self.held = manifest.is_live, manifest.generation, values
        self.is_trusted = self.is_noted = True

    def take(self, manifest: Manifest, values: Mapping[str, bytes], result: str) -> int:
        """Take a push. Returns the exit status of the push unit."""
        if not self.takes_pushes or result == "absent":
            return Exit.LATER
        is_held = (manifest.generation, values) == (self.generation, self.held)
        is_older = manifest.generation <= self.generation and not is_held
        if result in {"forged", "refused"} or is_older:
            return Exit.GUEST
        if result in {"lost", "killed"}:
            return Exit.UNKNOWN
        if not is_held:
            self.touched += 1
            if result == "undone" or FAILING & set(values.values()):
                return Exit.UNDONE
            self.generation, self.held = manifest.generation, values
        return Exit.UNKNOWN if result == "unanswered" else 0
