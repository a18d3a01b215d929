# SPDX-License-Identifier: MIT
"""Hints end the loop's wait: those of units after a random pause while a VM is unsteady, others at once."""

from __future__ import annotations

import random
import threading
import time
from types import SimpleNamespace

import pytest

from credferry.agent.daemon import hints as hints_module
from credferry.agent.daemon.cycle import LOOK_AGAIN_SECONDS
from credferry.agent.daemon.hints import Hints

LONG = 20.0


@pytest.fixture
def hints(monkeypatch: pytest.MonkeyPatch) -> Hints:
    """A queue whose random pause is long."""
    monkeypatch.setattr(random, "uniform", lambda _least, _most: LONG)
    return Hints()


@pytest.mark.parametrize("other", ["inotify", "reload", "stop", "sync", "sealed"])
def test_a_change_ends_the_pause_of_an_unsteady_vm(hints: Hints, other: str) -> None:
    """What is published, ordered or asked for does not wait for the unit's rhythm."""
    hints.put("job")
    threading.Timer(0.05, hints.put, (other,)).start()
    began = time.monotonic()
    assert hints.wait(LONG, is_unsteady=True) == {"job", other}
    assert time.monotonic() - began < LONG / 2


def test_hints_of_units_do_not(hints: Hints, monkeypatch: pytest.MonkeyPatch) -> None:
    """All hints that come during the pause are taken together."""
    monkeypatch.setattr(random, "uniform", lambda _least, _most: 0.3)
    for hint in ("job", "rollout", "job"):
        hints.put(hint)
    began = time.monotonic()
    assert hints.wait(LONG, is_unsteady=True) == {"job", "rollout"}
    assert time.monotonic() - began >= 0.3


def test_the_pause_is_at_most_half_of_the_time_to_the_next_look(
    hints: Hints, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be none at all, and then ends though the clock stands still."""
    asked: list[tuple[float, float]] = []

    def shortest(least: float, most: float) -> float:
        asked.append((least, most))
        return least

    monkeypatch.setattr(random, "uniform", shortest)
    monkeypatch.setattr(hints_module, "time", SimpleNamespace(monotonic=lambda: 7.0))
    hints.put("job")
    assert hints.wait(LONG, is_unsteady=True) == {"job"}
    assert asked == [(0, LOOK_AGAIN_SECONDS / 2)]


def test_all_hints_that_are_there_are_taken(hints: Hints) -> None:
    """One look answers them all."""
    for hint in ("job", "inotify", "sync"):
        hints.put(hint)
    assert hints.wait(LONG, is_unsteady=False) == {"job", "inotify", "sync"}
    assert hints.wait(0.01, is_unsteady=False) == set()


def test_a_steady_loop_does_not_pause(hints: Hints) -> None:
    """Any hint ends the wait, and no hint lets it end by itself."""
    hints.put("job")
    began = time.monotonic()
    assert hints.wait(LONG, is_unsteady=False) == {"job"}
    assert time.monotonic() - began < LONG / 2
    assert hints.wait(0.01, is_unsteady=True) == set()
