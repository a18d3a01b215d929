# SPDX-License-Identifier: MIT
"""A few rotations of the soak, to show that it works; ``make soak`` is the whole."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from tests.soak import AGENT, Soak, soak

pytestmark = pytest.mark.host


def test_ten_rotations() -> None:
    """Ten rotations over five light VMs: none lost, none doubled, with the agent killed in some of them."""
    tally = soak(10, 5, kill=0.5)
    assert (tally.rotations, tally.lost, tally.doubled) == (10, 0, 0)
    assert tally.restarts >= 5, "the rotations restart VMs"
    assert tally.pushes, "the rotations push to a live VM"
    assert tally.killed >= 1
    assert tally.resources.keys() == {"start", "middle", "end"}
    assert all(held.memory and held.descriptors and held.threads for held in tally.resources.values())


def test_what_is_not_delivered_is_lost() -> None:
    """Lost and doubled are counted: a rotation without an agent is the one, a needless restart the other."""
    with ExitStack() as stack:
        run = Soak(stack, 2, seed=1, lost_seconds=0.1)
        run.host.run("systemctl", "restart", "soak@soak-0.service")
        run.settle()
        assert (run.tally.lost, run.tally.doubled) == (0, 1)
        run.host.run("systemctl", "stop", AGENT)
        while not run.tally.lost:
            run.rotate(kill=False)
