# SPDX-License-Identifier: MIT
"""Time of the model world: it passes when the world says so, and when the agent waits."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from credferry.agent.rollout.clock import Clock


@dataclass(slots=True)
class ModelClock:
    """Seconds since the host's boot."""

    now: float = 1_000_000.0
    wall_offset: float = 1_700_000_000.0

    def pass_time(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds

    def wall(self) -> float:
        """Seconds since 1970."""
        return self.now + self.wall_offset

    def parts(self) -> Clock:
        """The clock, as the agent takes it."""
        return Clock(lambda: self.now, lambda: self.now, self.wall)


class ModelStop(threading.Event):
    """What tells the agent to stop. A wait for it takes no real time."""

    def __init__(self, clock: ModelClock) -> None:
        super().__init__()
        self._clock = clock

    def wait(self, timeout: float | None = None) -> bool:
        """See `threading.Event`."""
        self._clock.pass_time(timeout or 0.0)
        return self.is_set()
