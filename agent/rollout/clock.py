# SPDX-License-Identifier: MIT
"""The sources of time that decide when a restart or push may begin."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def _boot_time() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True, slots=True)
class Clock:
    """Sources of time, in seconds."""

    monotonic: Callable[[], float] = time.monotonic
    boot: Callable[[], float] = _boot_time
    """Seconds since the host's boot, including sleep."""
    wall: Callable[[], float] = time.time
