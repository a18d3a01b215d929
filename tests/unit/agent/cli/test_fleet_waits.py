# SPDX-License-Identifier: MIT
"""``status`` and ``show`` have from the agent what only it knows: who waits for a slot of the fleet."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import pytest

from credferry.agent.cli import fleet_waits
from credferry.agent.cli.documents import Generation, Published, StatusRow
from credferry.agent.config.loading import parse
from credferry.agent.errors import BusError
from credferry.agent.reconcile.decision import State

FLEET = parse(b'[fleet]\nendpoints = ["https://192.0.2.1"]\n', Path("config.toml"))
SAID = {"Name": "web", "State": "waiting", "Sealed": 4, "Reasons": ["until group web has a free slot"]}


class _Agent:
    """Stands for the agent on the bus, which a unit test has not."""

    def __init__(self, *said: dict[str, Any]) -> None:
        self.said = said

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Close nothing."""

    def vms(self) -> list[dict[str, Any]]:
        """See `RemoteAgent`."""
        if not self.said:
            raise BusError("gone", hint="wait")
        return list(self.said)


def row(state: State = State.RESTART_DUE) -> StatusRow:
    """What a look of the verb's own finds."""
    return StatusRow(
        vm="web",
        unit="microvm@web.service",
        unit_state="active (running)",
        state=state,
        since=None,
        published=Published(digest=None, credentials={}),
        sealed=Generation(generation=4, digest=None),
        running=Generation(generation=3, digest=None),
        held=False,
        last_result="",
        system=None,
        reasons=[],
    )


@pytest.mark.parametrize(
    ("agent", "mine", "state"),
    [
        (_Agent(SAID), State.RESTART_DUE, State.WAITING),
        (_Agent(SAID), State.PUSH_DUE, State.WAITING),
        (_Agent(SAID), State.IN_STEP, State.IN_STEP),
        (_Agent(SAID | {"Sealed": 3}), State.RESTART_DUE, State.RESTART_DUE),
        (_Agent(SAID | {"State": "restart due"}), State.RESTART_DUE, State.RESTART_DUE),
        (_Agent(SAID | {"Name": "db"}), State.RESTART_DUE, State.RESTART_DUE),
        (_Agent(), State.RESTART_DUE, State.RESTART_DUE),
        (None, State.RESTART_DUE, State.RESTART_DUE),
    ],
)
def test_a_wait_for_the_fleet(
    monkeypatch: pytest.MonkeyPatch, agent: _Agent | None, mine: State, state: State
) -> None:
    """A due VM waits if the agent says so of the same generation, with the agent's reason."""
    monkeypatch.setattr(fleet_waits, "running_agent", lambda _: agent)
    (found,) = fleet_waits.with_waits(FLEET, [row(mine)])
    assert found.state is state
    assert found.reasons == (SAID["Reasons"] if state is State.WAITING else [])


def test_without_a_fleet_nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host without [fleet] asks no agent for it."""
    monkeypatch.setattr(fleet_waits, "running_agent", lambda _: pytest.fail("asked"))
    assert fleet_waits.with_waits(parse(b"", Path("c")), [row()]) == [row()]
