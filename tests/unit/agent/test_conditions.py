# SPDX-License-Identifier: MIT
"""Conditions that last are told once, and counted."""

from __future__ import annotations

from credferry.agent.log import Conditions


def test_told_once_and_counted() -> None:
    """Met again and again it is told once; over, it is summed up once."""
    conditions = Conditions()
    told = [conditions.met("disk", "full", float(now)) for now in range(1000)]
    assert told.count(True) == 1
    assert told[0]
    assert conditions.over("disk", 1000.0) == "seen 1000 times in 1000 s"
    assert conditions.over("disk", 1001.0) == ""
    assert conditions.met("disk", "full", 1002.0)


def test_another_text_is_told() -> None:
    """Something else being the matter is news; since when the first was it still counts."""
    conditions = Conditions()
    assert conditions.met("disk", "full", 0.0)
    assert conditions.met("disk", "read-only", 10.0)
    assert conditions.over("disk", 20.0) == "seen 1 times in 20 s"


def test_keys_are_apart() -> None:
    """One condition being over leaves the others."""
    conditions = Conditions()
    conditions.met("a", "x", 0.0)
    conditions.met("b", "x", 0.0)
    conditions.over("a", 1.0)
    assert not conditions.met("b", "x", 2.0)
