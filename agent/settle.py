# SPDX-License-Identifier: MIT
"""Whether what was read is settled: a symlink's swap commits at once, writes in place must fall quiet."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agent.source import Generation


@dataclass(slots=True)
class Settler:
    """Remembers what was seen last. Time is monotonic, in seconds, and given by the caller."""

    quiet_seconds: float
    quiet_max_seconds: float
    _generation: Generation | None = field(default=None, init=False)
    _content: object = field(default=None, init=False)
    _same_since: float = field(default=0.0, init=False)
    _waiting_since: float | None = field(default=None, init=False)

    def wait(self, generation: Generation, content: object, now: float) -> float:
        """How many seconds to wait before believing this content; 0.0 for none.

        ``content`` is anything that compares equal exactly when what was read is the same.
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
