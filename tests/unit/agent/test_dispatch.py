# SPDX-License-Identifier: MIT
"""Threads that restart VMs: as many as there are slots, and more only for those that are overdue."""

from __future__ import annotations

import math
import threading
import time
from types import SimpleNamespace

import pytest

from credferry.agent.rollout import dispatcher as dispatcher_module
from credferry.agent.rollout.dispatcher import Dispatcher
from tests.support.host import wait_until

WAIT = 20.0


class Work:
    """Work that goes on until it is let go; what was begun, in order."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.at_once = self.most_at_once = 0
        self.gates: dict[str, threading.Event] = {}
        self.changed = threading.Condition()

    def __call__(self, name: str) -> None:
        """Begin, and go on until it is let go."""
        with self.changed:
            self.begun.append(name)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            self.changed.notify_all()
        gate = self.gates.get(name)
        if gate is not None:
            assert gate.wait(WAIT)
        with self.changed:
            self.at_once -= 1
            self.changed.notify_all()

    def wait(self, *begun: str) -> None:
        """Wait until exactly these were begun."""
        with self.changed:
            assert self.changed.wait_for(lambda: self.begun == list(begun), WAIT), self.begun

    def wait_idle(self) -> None:
        """Wait until nothing is at work."""
        with self.changed:
            assert self.changed.wait_for(lambda: self.at_once == 0, WAIT)


@pytest.mark.parametrize("slots", [1, 3])
def test_so_many_at_a_time(slots: int) -> None:
    """Never more at a time than there are slots, in the order in which they were submitted."""
    work = Work()
    names = [str(number) for number in range(20)]
    dispatcher = Dispatcher(work, slots, 60)
    work.gates = {name: threading.Event() for name in names[:slots]}
    dispatcher.start()
    dispatcher.submit(names)
    with work.changed:
        assert work.changed.wait_for(lambda: len(work.begun) == slots, WAIT)
    for gate in work.gates.values():
        gate.set()
    with work.changed:
        assert work.changed.wait_for(lambda: len(work.begun) == len(names), WAIT)
    work.wait_idle()
    dispatcher.stop(WAIT)
    assert work.most_at_once == slots
    assert sorted(work.begun, key=int) == names
    assert slots > 1 or work.begun == names


def test_one_thread_a_vm() -> None:
    """A VM that waits or is at work is not taken a second time."""
    work = Work()
    work.gates = {"a": threading.Event()}
    dispatcher = Dispatcher(work, 2, 60)
    dispatcher.start()
    for _ in range(3):
        dispatcher.submit(["a"])
    work.wait("a")
    dispatcher.submit(["a", "b"])
    work.wait("a", "b")
    work.gates["a"].set()
    work.wait_idle()
    dispatcher.stop(WAIT)
    assert work.begun == ["a", "b"]


def test_what_is_overdue_gives_up_its_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others go on meanwhile, and afterwards there are as many threads as before."""
    now = 1000.0
    # The test's own clock: by a real one, what has just begun would be overdue where a machine is slow.
    monkeypatch.setattr(dispatcher_module, "time", SimpleNamespace(monotonic=lambda: now))
    work = Work()
    work.gates = {name: threading.Event() for name in "abc"}
    before = threading.active_count()
    dispatcher = Dispatcher(work, 1, 60)
    dispatcher.start()
    dispatcher.submit("abcd")
    for number in range(1, 4):
        work.wait(*"abcd"[:number])
        now += 59
        assert dispatcher.relieve() == 1
        assert work.begun == list("abcd"[:number])
        now += 1
        dispatcher.relieve()
    work.wait(*"abcd")
    for gate in work.gates.values():
        gate.set()
    work.wait_idle()
    dispatcher.submit("e")
    work.wait(*"abcde")
    end = time.monotonic() + WAIT
    while threading.active_count() > before + 1:
        assert time.monotonic() < end
    dispatcher.stop(WAIT)


def test_other_limits() -> None:
    """More slots take effect at once, fewer when what is at work has ended."""
    work = Work()
    work.gates = {name: threading.Event() for name in "ab"}
    dispatcher = Dispatcher(work, 1, 60)
    dispatcher.start()
    dispatcher.submit("ab")
    work.wait("a")
    dispatcher.adjust(2, 60)
    work.wait("a", "b")
    dispatcher.adjust(1, 60)
    for gate in work.gates.values():
        gate.set()
    work.wait_idle()
    work.most_at_once = 0
    dispatcher.submit("cdefg")
    work.wait(*"abcdefg")
    work.wait_idle()
    dispatcher.stop(WAIT)
    assert work.most_at_once == 1


def test_threads_that_are_not_needed_end() -> None:
    """Fewer slots end the threads that have nothing to do, at once."""
    before = set(threading.enumerate())
    dispatcher = Dispatcher(Work(), 3, 60)
    dispatcher.start()
    made = set(threading.enumerate()) - before
    assert len(made) == 3
    dispatcher.adjust(1, 60)
    wait_until(lambda: sum(each.is_alive() for each in made) == 1, WAIT, "the end of two threads")
    dispatcher.stop(WAIT)
    assert not any(each.is_alive() for each in made)


def test_stopping_begins_nothing_more() -> None:
    """What waits is let go of, what is at work is waited for."""
    work = Work()
    work.gates = {"a": threading.Event()}
    dispatcher = Dispatcher(work, 1, 60)
    dispatcher.start()
    dispatcher.submit("abc")
    work.wait("a")
    dispatcher.forget_waiting()
    assert [dispatcher.is_at_work(name) for name in "ab"] == [True, False]
    dispatcher.submit("b")

    def let_go() -> None:
        wait_until(lambda: not dispatcher.is_at_work("b"), WAIT, "the stop has begun")
        work.gates["a"].set()

    helper = threading.Thread(target=let_go)
    helper.start()
    dispatcher.stop(WAIT)
    helper.join()
    assert work.begun == ["a"]
    assert not dispatcher.is_at_work("a")


def test_a_stop_waits_for_no_longer_than_it_may() -> None:
    """Work that does not end is left to itself, and no thread of it keeps the process from its end."""
    work = Work()
    work.gates = {name: threading.Event() for name in "ab"}
    dispatcher = Dispatcher(work, 2, 60)
    dispatcher.start()
    dispatcher.submit("ab")
    work.wait("a", "b")
    began = time.monotonic()
    dispatcher.stop(0.2)
    assert time.monotonic() - began < WAIT / 2
    left = [each for each in threading.enumerate() if each.name.startswith("rollout-")]
    assert sorted(each.name for each in left) == ["rollout-0", "rollout-1"]
    assert all(each.daemon for each in left)
    for gate in work.gates.values():
        gate.set()
    dispatcher.stop(WAIT)
    assert not any(each.is_alive() for each in left)


def test_nothing_is_overdue_while_nothing_is_at_work() -> None:
    """Then the loop has no reason to look again."""
    dispatcher = Dispatcher(Work(), 1, 60)
    assert dispatcher.relieve() == math.inf
    dispatcher.stop(WAIT)
