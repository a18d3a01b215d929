# SPDX-License-Identifier: MIT
"""Work of the agent's loop that any thread may ask for, and wait for: a look, a reload."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from credferry.agent.errors import CredferryError, OrderError

if TYPE_CHECKING:
    from collections.abc import Callable


class LoopRequest:
    """One kind of work. ``hint`` makes the loop do it, and returns at once; ``what`` names it in errors."""

    def __init__(self, hint: Callable[[], None], what: str, seconds: float) -> None:
        self._hint, self._what, self._seconds = hint, what, seconds
        self._changed = threading.Condition()
        self._begun = self._done = 0
        self._failure: CredferryError | None = None

    def begin(self) -> None:
        """Note that the loop begins the work. A thread that asks from now on waits for the next time."""
        with self._changed:
            self._begun += 1

    def end(self, failure: CredferryError | None = None) -> None:
        """Note that the loop has done the work, with the error that ended it, if any."""
        with self._changed:
            self._done, self._failure = self._begun, failure
            self._changed.notify_all()

    def do(self, work: Callable[[], None]) -> CredferryError | None:
        """Do the work for all threads that have asked. Returns the error that ended it, if any."""
        self.begin()
        failure = None
        try:
            work()
        except CredferryError as error:
            failure = error
        self.end(failure)
        return failure

    def ask(self) -> None:
        """Have the loop do the work, and return when it has done it. It begins after this call.

        Raises the error that ended the work, and `OrderError` if it takes too long.
        """
        with self._changed:
            wanted = self._begun + 1
            self._hint()
            if not self._changed.wait_for(lambda: self._done >= wanted, self._seconds):
                raise OrderError(
                    "Busy",
                    f"the agent's {self._what} is not done within {self._seconds:.0f} s",
                    hint=f"the {self._what} continues; try again later",
                )
            if self._failure is not None:
                raise self._failure
