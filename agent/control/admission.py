# SPDX-License-Identifier: MIT
"""Limits how many calls each user of the bus may have under way at once."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field

_ROOT = 0
PER_USER = 4
OF_ALL = 12
"""Limit for all users except root together, because each call takes a thread."""


@dataclass(frozen=True, slots=True)
class Admission:
    """Counts the calls under way, by user. Root has no limit. Any thread may call the methods."""

    _under_way: Counter[int] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def admit(self, uid: int) -> bool:
        """Whether a user's call may begin. If so, `leave` must be called when it is over."""
        with self._lock:
            others = self._under_way.total() - self._under_way[_ROOT]
            if uid != _ROOT and (self._under_way[uid] >= PER_USER or others >= OF_ALL):
                return False
            self._under_way[uid] += 1
            return True

    def leave(self, uid: int) -> None:
        """Note that a user's call is over."""
        with self._lock:
            self._under_way[uid] -= 1
            if not self._under_way[uid]:
                del self._under_way[uid]
