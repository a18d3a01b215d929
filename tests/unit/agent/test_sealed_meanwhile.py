# SPDX-License-Identifier: MIT
"""The loop's thread seals a newer change at the moment at which a worker rolls the VM back."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from credferry.agent.reconcile.decision import State
from credferry.agent.store import generations
from credferry.agent.store.files import point
from credferry.agent.store.generations import Store
from credferry.agent.store.locks import rollout_lock
from tests.support.loop import Loop, one_vm

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from credferry.launcher.handoff import Manifest


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Loop]:
    """A service with one VM."""
    with one_vm(tmp_path) as made:
        yield made


@pytest.mark.parametrize("first", ["sealed", "rolled back"])
def test_the_vm_gets_the_newer_change_and_rests(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    """Whichever is first, the VM ends on the newer change, after one start for each step."""
    started_on: list[int] = []
    is_due, is_sealed, is_back = threading.Event(), threading.Event(), threading.Event()
    revert = Store.revert

    def start(_unit: str) -> str:
        started_on.append(number := loop.store.current_number("a"))
        if number == 2:
            return loop.fail_vm("a")
        loop.start_vm("a")
        return "done"

    def reverted(store: Store, vm: str, number: int) -> Manifest | None:
        is_due.set()
        assert first == "rolled back" or is_sealed.wait(20)
        found = revert(store, vm, number)
        is_back.set()
        assert is_sealed.wait(20)
        return found

    def pointed(link: Path, target: str) -> None:
        if target == "generations/3":
            assert first == "sealed" or is_back.wait(20)
            point(link, target)
            is_sealed.set()
            assert is_back.wait(20)
        else:
            point(link, target)

    loop.units.job = start
    monkeypatch.setattr(Store, "revert", reverted)
    monkeypatch.setattr(generations, "point", pointed)
    loop.publish(x="bad")
    loop.turn()
    assert is_due.wait(20)
    loop.publish(x="good")
    loop.turn(lambda: is_back.is_set() and loop.decision("a").state is State.IN_STEP)
    with loop.store.lock(rollout_lock("a")):  # the worker has done its work
        pass
    loop.turn()
    store = loop.store
    now = store.current("a")
    assert now is not None
    assert now.generation == store.current_number("a") == started_on[-1]
    assert loop.decision("a").state is State.IN_STEP
    assert started_on == ([2, 1, 4] if first == "sealed" else [2, 3])
