# SPDX-License-Identifier: MIT
"""Work that any thread may ask for and wait for, and that is done once for all that ask at the same time."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Generic, TypeVar

from credferry.agent.errors import CredferryError, OrderError

if TYPE_CHECKING:
    from collections.abc import Callable


_T = TypeVar("_T")


class SharedWork(Generic[_T]):
    """Work that a caller's own thread does, for all callers that wait for it. It is done once at a time."""

    def __init__(self) -> None:
        self._changed, self._at_work = threading.Lock(), threading.Lock()
        self._next: _Round[_T] | None = None
        """The round that waits for the one under way. Who asks now takes part in it."""

    def do(self, work: Callable[[], _T]) -> _T:
        """The result of the work, which began after this call. Raises what the work raises."""
        with self._changed:
            is_mine, mine = self._next is None, self._next or _Round()
            self._next = mine
        try:
            if is_mine:
                with self._at_work:
                    with self._changed:
                        self._next = None
                    mine.do(work)
            return mine.result()
        finally:
            # An error's traceback has this frame. It must not have the error: that would keep both, and what
            # the work had read. `concurrent.futures` does the same.
            del mine


class _Round(Generic[_T]):
    """One time that the work is done. Only its callers keep it: the result may have secrets."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self._results: list[_T] = []
        self._error: BaseException | None = None

    def do(self, work: Callable[[], _T]) -> None:
        """Do the work, and end the others' wait, however it ends."""
        try:
            self._results.append(work())
        except BaseException as error:  # noqa: BLE001 (raised in each caller's thread)
            self._error = error
        finally:
            self._over.set()
            del self  # as in `SharedWork.do`

    def result(self) -> _T:
        """The work's result, once it is over. Raises what the work raised."""
        try:
            self._over.wait()
            if self._error is not None:
                raise self._error
            return self._results[0]
        finally:
            del self  # as in `SharedWork.do`


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
