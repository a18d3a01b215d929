# SPDX-License-Identifier: MIT
"""Conditions that last are told once, and counted."""

from __future__ import annotations

from credferry.agent.log import Conditions


def test_told_once_and_counted() -> None:
    """Met again and again it is told once; over, it is summed up once."""
    conditions = Conditions()
    told = [conditions.begin("disk", "full", float(now)) for now in range(1000)]
    assert told.count(True) == 1
    assert told[0]
    assert conditions.end("disk", 1000.0) == "1000 s (1000 failed checks)"
    assert conditions.end("disk", 1001.0) == ""
    assert conditions.begin("disk", "full", 1002.0)


def test_another_text_is_told() -> None:
    """Something else being the matter is news; since when the first was it still counts."""
    conditions = Conditions()
    assert conditions.begin("disk", "full", 0.0)
    assert conditions.begin("disk", "read-only", 10.0)
    assert conditions.begin("disk", "full", 20.0)
    assert conditions.end("disk", 30.0) == "30 s (1 failed check)"


def test_texts_of_several_faults_are_told_once() -> None:
    """The agent reports each of several faults once. It remembers a bounded number of them."""
    conditions = Conditions()

    def told(*texts: str) -> list[bool]:
        return [conditions.begin("disk", text, 0.0, of_several=True) for text in texts]

    assert told(*("full", "broken") * 500) == [True, True, *[False] * 998]
    assert all(told(*map(str, range(1000))))
    assert told("full") == [True]


def test_keys_are_apart() -> None:
    """One condition being over leaves the others."""
    conditions = Conditions()
    conditions.begin("a", "x", 0.0)
    conditions.begin("b", "x", 0.0)
    conditions.end("a", 1.0)
    assert not conditions.begin("b", "x", 2.0)
