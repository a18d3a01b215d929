# SPDX-License-Identifier: MIT
"""How the loop's turns follow each other when something is wrong: none is lost, and none comes too soon."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import pytest

from credferry.agent.errors import CredferryError, SealError, StoreError
from credferry.agent.store.generations import Store
from tests.support.loop import Loop
from tests.unit.agent.test_service import VM, in_step

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PING = "WATCHDOG=1"


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Loop]:
    """A VM that is in step with what is published."""
    made = Loop(tmp_path, VM)
    made.publish(x="one")
    with made.running():
        in_step(made)
        yield made


def test_each_turn_feeds_the_watchdog(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the turn that acts on a change alone, and those after it, when the source is gone by then."""
    said: list[str] = []
    monkeypatch.setattr("credferry.agent.daemon.service.daemon.notify", said.append)
    loop.publish(x="two")
    loop.turn()
    assert loop.turned.owes_look
    assert said.count(PING) == 1
    (loop.top / "secrets").unlink()
    for turns in (2, 3):
        loop.turn()
        assert loop.turned.failure is not None
        assert not loop.turned.owes_look
        assert said.count(PING) == turns


@pytest.mark.parametrize("error", [SealError("no key", hint="none"), StoreError("no room", hint="none")])
def test_what_cannot_be_sealed_is_tried_again_after_a_pause(
    loop: Loop, error: CredferryError, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of a restart's thread does not end the pause: no thread begins. Nothing is restarted."""

    def refused(*_: object) -> NoReturn:
        raise error

    monkeypatch.setattr(Store, "write", refused)
    loop.publish(x="two")
    loop.turn()
    loop.turn()
    assert 0.5 < loop.turned.delay <= 5.0
    hints = loop.service._hints.wait(0.2, is_unsteady=False) | loop.service._hints.wait(
        0.2, is_unsteady=False
    )
    assert "rollout" not in hints
    assert loop.units.restarts == []
    monkeypatch.undo()
    loop.turn(lambda: loop.units.restarts)
