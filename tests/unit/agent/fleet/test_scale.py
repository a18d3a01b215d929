# SPDX-License-Identifier: MIT
"""A secret through many hosts, with the real code for slots and a real etcd. See `tests.fleet` for more."""

from __future__ import annotations

from tests.fleet import roll


def test_a_secret_through_forty_hosts() -> None:
    """Each host is restarted once; in no revision of etcd are more slots held than the limit."""
    found, held = roll(40, 10, killed_at=20)
    assert (found.restarted, found.tried) == (40, 0)
    assert max(held) == found.most_down == 10
    assert held[-1] == 0
    assert found.seconds < 120


def test_a_value_that_does_not_work_is_tried_on_no_more_than_the_limit() -> None:
    """Once it has failed, it is tried on no other host than those that had a slot by then."""
    found, held = roll(20, 3, works=lambda _: False)
    assert found.restarted == 0
    assert 1 <= found.tried <= max(held) <= 3
