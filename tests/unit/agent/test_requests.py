# SPDX-License-Identifier: MIT
"""Work that is done once for all that ask for it at the same time."""

from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

import pytest

from credferry.agent.errors import BusError
from credferry.agent.rollout import requests
from credferry.agent.rollout.requests import SharedWork
from tests.support.host import patience

CALLERS = 12


class Callers:
    """Many callers that ask for a second look while a first one is under way."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: Exception | None = None) -> None:
        self.shared: SharedWork[str] = SharedWork()
        self.looks: list[str] = []
        self.answers: list[Future[str]] = []
        self._error = error
        self._waiting = threading.Semaphore(0)
        result = requests._Round[str].result

        def wait(each: requests._Round[str]) -> str:
            self._waiting.release()
            return result(each)

        monkeypatch.setattr(requests._Round, "result", wait)
        with ThreadPoolExecutor(CALLERS) as self._threads:
            self.first = self.shared.do(self._look_first)

    def _look_first(self) -> str:
        self.answers += [self._threads.submit(self.shared.do, self._look_next) for _ in range(CALLERS)]
        for _ in range(CALLERS - 1):  # all but the one that is to look next
            assert self._waiting.acquire(timeout=20 * patience())
        self.looks.append("first")
        return "first"

    def _look_next(self) -> str:
        self.looks.append("next")
        if self._error is not None:
            raise self._error
        return "next"


def test_all_that_wait_share_one_look_that_began_after_they_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many ask while a look is under way, there is one more, and nobody gets the earlier one."""
    callers = Callers(monkeypatch)
    assert callers.first == "first"
    assert [each.result() for each in callers.answers] == ["next"] * CALLERS
    assert callers.looks == ["first", "next"]


def test_all_that_wait_get_the_error_of_their_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look that fails leaves nobody waiting, and who asks later has a look of their own."""
    callers = Callers(monkeypatch, BusError("the bus is away", hint="wait"))
    for each in callers.answers:
        with pytest.raises(BusError, match="the bus is away"):
            each.result()
    assert callers.looks == ["first", "next"]
    assert callers.shared.do(lambda: "later") == "later"


def test_an_error_keeps_nothing_of_the_look() -> None:
    """What a look had read when it failed is gone at once, without the garbage collector."""
    read: list[weakref.ref[set[str]]] = []

    def fail() -> str:
        values = _Values()
        read.append(weakref.ref(values))
        raise BusError("the bus is away", hint="wait")

    gc.disable()
    try:
        with suppress(BusError):
            SharedWork[str]().do(fail)
        assert read[0]() is None
    finally:
        gc.enable()


class _Values(set[str]):
    """Stands for what a look has read. A plain set has no weak references."""
