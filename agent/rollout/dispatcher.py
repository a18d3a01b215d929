# SPDX-License-Identifier: MIT
"""Threads that work on VMs: one thread for each VM at a time, as many as there are slots."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


@dataclass(slots=True)
class _Restart:
    began: float
    is_overdue: bool = False


class Dispatcher:
    """Calls ``work`` with VM names in threads, one thread per VM at a time. ``work`` must not raise."""

    def __init__(self, work: Callable[[str], None], slots: int, slot_seconds: float) -> None:
        self._work = work
        self._slots = slots
        self._slot_seconds = slot_seconds
        self._waiting: OrderedDict[str, None] = OrderedDict()
        self._at_work: dict[str, _Restart] = {}
        self._threads: list[threading.Thread] = []
        self._changed = threading.Condition()
        self._is_stopped = False

    def start(self) -> None:
        """Start the threads."""
        with self._changed:
            self._hire()

    def adjust(self, slots: int, slot_seconds: float) -> None:
        """Apply other limits from now on."""
        with self._changed:
            self._slots, self._slot_seconds = slots, slot_seconds
            if self._threads:
                self._hire()
            self._changed.notify_all()

    def submit(self, names: Iterable[str]) -> None:
        """Queue these VMs in this order. A VM that already waits or is worked on is not queued again."""
        with self._changed:
            for name in names:
                if name not in self._at_work:
                    self._waiting.setdefault(name)
            if self._waiting:  # otherwise each check would wake all threads
                self._changed.notify_all()

    def relieve(self) -> float:
        """Free the slots of overdue restarts; seconds until the next one is overdue, or infinity."""
        with self._changed:
            now = time.monotonic()
            in_time = [restart for restart in self._at_work.values() if not restart.is_overdue]
            for restart in in_time:
                restart.is_overdue = now - restart.began >= self._slot_seconds
            self._hire()
            left = [each.began + self._slot_seconds - now for each in in_time if not each.is_overdue]
        return min(left, default=float("inf"))

    def is_at_work(self, name: str) -> bool:
        """Whether a VM waits for its turn, or is being restarted."""
        with self._changed:
            return name in self._waiting or name in self._at_work

    def forget_waiting(self) -> None:
        """Drop queued work that has not begun; the next check decides again."""
        with self._changed:
            self._waiting.clear()

    def stop(self, seconds: float) -> None:
        """Begin no more work, and wait at most ``seconds`` for the work that has begun."""
        with self._changed:
            self._is_stopped = True
            self._waiting.clear()
            self._changed.notify_all()
            threads = list(self._threads)
        end = time.monotonic() + seconds
        for thread in threads:
            thread.join(timeout=max(0.0, end - time.monotonic()))

    def _hire(self) -> None:
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        while not self._is_stopped and len(self._threads) < self._wanted():
            thread = threading.Thread(target=self._run, name=f"rollout-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _wanted(self) -> int:
        return self._slots + sum(restart.is_overdue for restart in self._at_work.values())

    def _run(self) -> None:
        me = threading.current_thread()
        while True:
            with self._changed:
                while not self._waiting and not self._is_dismissed(me):
                    self._changed.wait()
                if self._is_dismissed(me):
                    self._threads.remove(me)
                    return
                name, _ = self._waiting.popitem(last=False)
                self._at_work[name] = _Restart(time.monotonic())
            try:
                self._work(name)
            finally:
                with self._changed:
                    del self._at_work[name]

    def _is_dismissed(self, me: threading.Thread) -> bool:
        return self._is_stopped or (me in self._threads and len(self._threads) > self._wanted())
