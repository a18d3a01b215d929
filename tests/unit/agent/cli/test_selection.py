# SPDX-License-Identifier: MIT
"""How an operator names VMs and states."""

from __future__ import annotations

import pytest

from credferry.agent.cli.selection import states
from credferry.agent.config.choosing import fits
from credferry.agent.errors import ExitStatus, UsageError
from credferry.agent.reconcile.decision import State


def test_states_by_name() -> None:
    """A state of two words may be written with a blank or a hyphen; none means all."""
    assert states(["failed", "in step", "restart-due"]) == {State.FAILED, State.IN_STEP, State.RESTART_DUE}
    assert states(None) == frozenset()


def test_a_wrong_state_is_answered_with_those_there_are() -> None:
    """The error ends with the usage status, and its remedy lists every state."""
    with pytest.raises(UsageError, match="'fialed' is not a state") as error:
        states(["fialed"])
    assert error.value.status is ExitStatus.USAGE
    assert all(state.value.replace(" ", "-") in error.value.hint for state in State)


def test_names_and_patterns() -> None:
    """A pattern is as a shell has it; no patterns fit everything."""
    assert [fits("web-1", each) for each in ([], ["web-1"], ["web*"], ["db", "w*"], ["web"])] == [
        *(True, True, True, True, False)
    ]
