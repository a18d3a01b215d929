# SPDX-License-Identifier: MIT
"""Hints that the loop should look before its next turn is due."""

from __future__ import annotations

import queue
import random
from contextlib import suppress
from typing import TYPE_CHECKING

from credferry.agent.daemon.cycle import LOOK_AGAIN_SECONDS

if TYPE_CHECKING:
    import threading


class Hints:
    """A queue of hints. ``stop`` ends a pause early."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._queue: queue.SimpleQueue[str] = queue.SimpleQueue()

    def put(self, hint: str) -> None:
        """Give a hint. Any thread may call this; it returns at once."""
        self._queue.put(hint)

    def wait(self, seconds: float, *, is_unsteady: bool) -> set[str]:
        """Wait until a hint comes, or this time is over. Takes and returns all hints."""
        hints: set[str] = set()
        with suppress(queue.Empty):
            hints.add(self._queue.get(timeout=seconds))
            if is_unsteady:
                # A unit that fails and is started again and again causes hints in its own rhythm. Without a
                # random pause, each look would find the unit just started.
                self._stop.wait(random.uniform(0, LOOK_AGAIN_SECONDS / 2))  # noqa: S311 (guards nothing)
            while True:
                hints.add(self._queue.get_nowait())
        return hints
