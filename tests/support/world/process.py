# SPDX-License-Identifier: MIT
"""The agent's process in the model world: the real `Service`, whose threads and watch are models.

Restarts are carried out one after the other, after the turn that asked for them. So a history is the same
each time, and whatever the loop could do beside a restart can be done in its midst.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from contextlib import suppress
from typing import TYPE_CHECKING

from credferry.agent.errors import StoreError
from credferry.agent.rollout.dispatcher import Dispatcher
from credferry.agent.source.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path


class CrashError(BaseException):
    """The agent's process is gone, at once; not an Exception, so that nothing in it can catch it."""


class ModelThread:
    """The thread that asks a fleet's engine: the world has it do one job after the other."""

    def __init__(self) -> None:
        self._jobs: deque[Callable[[], None]] = deque()

    def submit(self, job: Callable[[], None]) -> None:
        """See `EngineThread`."""
        self._jobs.append(job)

    def raise_error(self) -> None:
        """See `EngineThread`: an error of a job has ended the test, or is the world's own."""

    def work_on_one(self) -> bool:
        """Do the job that waits first; False if there is none. After a full disk, a later look retries."""
        if not self._jobs:
            return False
        with suppress(StoreError):
            self._jobs.popleft()()
        return True


class ModelWatch(Watch):
    """Gives no hints: the world has the loop look."""

    def __init__(self, source: Path, hint: Callable[[str], None]) -> None:
        super().__init__(source, hint)
        self._place = source, source.resolve()

    def start(self) -> None:
        """See `Watch`."""

    def stop(self) -> None:
        """See `Watch`."""

    def arm(self, names: Iterable[str]) -> bool:  # noqa: ARG002 (as the real one has it)
        """See `Watch`. Where the source leads to another place, that is newly watched."""
        source, before = self._place
        self._place = source, source.resolve()
        return self._place[1] != before


class ModelDispatcher(Dispatcher):
    """Restarts VMs when the world says so, in the world's own thread."""

    def __init__(self, work: Callable[[str], None], slots: int, slot_seconds: float) -> None:
        super().__init__(work, slots, slot_seconds)
        self._queue: OrderedDict[str, None] = OrderedDict()
        self._busy: set[str] = set()

    def start(self) -> None:
        """See `Dispatcher`."""

    def adjust(self, slots: int, slot_seconds: float) -> None:
        """See `Dispatcher`."""

    def stop(self, seconds: float) -> None:
        """See `Dispatcher`."""

    def submit(self, names: Iterable[str]) -> None:
        """See `Dispatcher`."""
        for name in names:
            if name not in self._busy:
                self._queue.setdefault(name)

    def relieve(self) -> float:
        """See `Dispatcher`."""
        return float("inf")

    def is_at_work(self, name: str) -> bool:
        """See `Dispatcher`."""
        return name in self._queue or name in self._busy

    def forget_waiting(self) -> None:
        """See `Dispatcher`."""
        self._queue.clear()

    def work_on_one(self) -> bool:
        """Carry out the restart that waits first; False where none does."""
        if not self._queue:
            return False
        name, _ = self._queue.popitem(last=False)
        self._busy.add(name)
        try:
            self._work(name)
        finally:
            self._busy.discard(name)
        return True
