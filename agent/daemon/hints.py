# SPDX-License-Identifier: MIT
"""Hints that the loop should look before its next turn is due."""

from __future__ import annotations

import queue
import random
import time
from contextlib import suppress
from typing import Final

from credferry.agent.daemon.cycle import LOOK_AGAIN_SECONDS

_OF_UNITS: Final = frozenset({"job", "rollout"})
"""Hints that come in the rhythm of units."""


class Hints:
    """A queue of hints."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[str] = queue.SimpleQueue()

    def put(self, hint: str) -> None:
        """Give a hint. Any thread may call this; it returns at once."""
        self._queue.put(hint)

    def wait(self, seconds: float, *, is_unsteady: bool) -> set[str]:
        """Wait until a hint comes, or this time is over. Takes and returns all hints.

        While a VM is unsteady, a hint of a unit does not end the wait at once, and any other hint does.
        """
        hints: set[str] = set()
        with suppress(queue.Empty):
            hints.add(self._queue.get(timeout=seconds))
            if is_unsteady:
                self._pause(hints)
            while True:
                hints.add(self._queue.get_nowait())
        return hints

    def _pause(self, hints: set[str]) -> None:
        """Wait for a random time, or until a hint comes that is not of a unit. Adds to the hints.

        A unit that fails and is started again and again causes hints in its own rhythm. Without the pause,
        each look would find the unit just started.
        """
        end = time.monotonic() + random.uniform(0, LOOK_AGAIN_SECONDS / 2)  # noqa: S311 (guards nothing)
        while hints <= _OF_UNITS and (left := end - time.monotonic()) > 0:
            with suppress(queue.Empty):
                hints.add(self._queue.get(timeout=left))
