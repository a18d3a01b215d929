# SPDX-License-Identifier: MIT
"""An operator's word on a VM is answered with what it changed."""

from __future__ import annotations

import pytest

from credferry.agent.audit.events import Order
from credferry.agent.cli.hold import changed
from credferry.agent.reconcile.decision import State


@pytest.mark.parametrize(
    ("order", "state", "is_held", "said"),
    [
        (Order.HOLD, State.IN_STEP, False, "held; no restart"),
        (Order.HOLD, State.IN_STEP, True, "was held already"),
        (Order.RELEASE, State.IN_STEP, True, "released"),
        (Order.RELEASE, State.HALTED, False, "released"),
        (Order.RELEASE, State.IN_STEP, False, "nothing: was not held"),
        (Order.RELEASE, State.ROLLED_BACK, False, "nothing: not held but rolled back, which retry ends"),
        (Order.RELEASE, State.HELD, False, "nothing: held by its policy"),
        (Order.RETRY, State.FAILED, False, "retried"),
        (Order.RETRY, State.HALTED, False, "retried"),
        (Order.RETRY, State.ROLLED_BACK, True, "retried"),
        (Order.RETRY, State.IN_STEP, False, "nothing: had not failed"),
    ],
)
def test_what_an_order_changes(order: Order, state: State, *, is_held: bool, said: str) -> None:
    """Each order says what it did, and one without effect why it has none."""
    assert changed(order, state, is_held=is_held).startswith(said)
