# SPDX-License-Identifier: MIT
"""Settling: commits at once, writes in place after a quiet period, and never later than the maximum."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from credferry.agent.source.settling import Settler
from credferry.agent.source.snapshot import SourceGeneration
from credferry.agent.source.trail import Symlink

FIRST = SourceGeneration(1, 1, committed=True, way=(Symlink("/s", "1", 0, 1),))
SECOND = SourceGeneration(1, 2, committed=True, way=(Symlink("/s", "2", 0, 2),))
DIRECTORY = SourceGeneration(1, 3, committed=False)


def test_a_swap_is_a_commit() -> None:
    """A symlink's swap is believed at once, also at the first look."""
    settler = Settler(1, 10)
    assert settler.wait(FIRST, "a", 0) == 0
    assert settler.wait(SECOND, "b", 0.1) == 0


def test_a_write_in_place_falls_quiet() -> None:
    """The same generation with other content is believed once it has stayed the same for the period."""
    settler = Settler(1, 10)
    settler.wait(FIRST, "a", 0)
    assert settler.wait(FIRST, "b", 5) == 1
    assert settler.wait(FIRST, "c", 5.5) == 1
    assert settler.wait(FIRST, "c", 6) == 0.5
    assert settler.wait(FIRST, "c", 6.5) == 0
    assert settler.wait(FIRST, "c", 60) == 0


def test_a_swap_during_the_wait_ends_it() -> None:
    """A commit that comes while a write is being waited for is believed at once."""
    settler = Settler(1, 10)
    settler.wait(FIRST, "a", 0)
    assert settler.wait(FIRST, "b", 1) == 1
    assert settler.wait(SECOND, "c", 1.1) == 0
    assert settler.wait(SECOND, "c", 1.2) == 0


def test_a_swap_above_the_source_is_a_commit() -> None:
    """A source below the link that is swapped was published whole by that swap."""
    before = SourceGeneration(1, 1, committed=False, way=(Symlink("/s", "1", 0, 1),))
    settler = Settler(1, 10)
    settler.wait(before, "a", 0)
    settler.wait(before, "a", 5)
    assert (
        settler.wait(SourceGeneration(1, 2, committed=False, way=(Symlink("/s", "2", 0, 2),)), "b", 6) == 0
    )


def test_a_swap_that_links_lead_through_is_a_commit() -> None:
    """The source stays, and the directory that its links lead to is another: published whole."""
    before = SourceGeneration(1, 1, committed=False, way=(Symlink("/s", "1", 0, 1),))
    settler = Settler(1, 10)
    settler.wait(before, "a", 0)
    settler.wait(before, "a", 5)
    assert (
        settler.wait(SourceGeneration(1, 1, committed=False, way=(Symlink("/s", "2", 0, 2),)), "b", 6) == 0
    )


def test_a_directory_that_is_made_anew_behind_a_link_settles() -> None:
    """The link has not moved: what it leads to is being filled."""
    settler = Settler(1, 10)
    settler.wait(FIRST, "a", 0)
    assert settler.wait(SourceGeneration(1, 9, committed=True, way=FIRST.way), "b", 6) == 1


def test_a_directory_settles_at_first_sight() -> None:
    """A plain directory may be in the middle of being written when it is first seen."""
    assert Settler(1, 10).wait(DIRECTORY, "a", 0) == 1


@given(st.lists(st.floats(min_value=0.01, max_value=0.9), min_size=20, max_size=60))
def test_endless_writing_is_read_at_the_maximum(steps: list[float]) -> None:
    """However often it changes, a source is believed within the maximum of having begun to change."""
    settler = Settler(1, 5)
    settler.wait(FIRST, -1, 0)
    now, began = 0.0, None
    for number, step in enumerate(steps):
        now += step
        if began is None:
            began = now
        if settler.wait(FIRST, number, now) == 0:
            assert now - began >= 5
            began = None
        else:
            assert now - began < 5


def test_what_does_not_stop_changing_is_known_for_it() -> None:
    """Until it falls quiet, or is swapped, the next time that it changes."""
    settler = Settler(1, 5)
    for content in range(6):
        settler.wait(DIRECTORY, content, content * 0.9)
    assert settler.wait(DIRECTORY, "b", 5.1) == 0
    assert settler.is_restless
    assert settler.wait(DIRECTORY, "c", 6) == 1
    assert settler.is_restless
    assert settler.wait(DIRECTORY, "c", 7) == 0
    assert not settler.is_restless
