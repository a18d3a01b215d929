# SPDX-License-Identifier: MIT
"""The kinds of facts, and their entries in the journal's catalogue."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from credferry.agent.audit.events import Event

CATALOG = (Path(__file__).parents[3] / "contrib/catalog/credferry.catalog").read_text()


def test_ids_are_message_ids() -> None:
    """Each id is 128 bits in hexadecimal, and no two facts share one."""
    assert all(re.fullmatch(r"[0-9a-f]{32}", event.value) for event in Event)
    assert len({event.value for event in Event}) == len(Event)


@pytest.mark.parametrize("event", list(Event))
def test_every_fact_is_explained(event: Event) -> None:
    """The catalogue has a subject and a text for every fact that we write."""
    entry = re.search(
        rf"^-- {event.value}\nSubject: .+\nDefined-By: credferry\n\n.{{40}}", CATALOG, re.MULTILINE
    )
    assert entry is not None


def test_nothing_else_is_in_the_catalogue() -> None:
    """An entry whose fact is gone would mislead."""
    assert set(re.findall(r"^-- ([0-9a-f]{32})$", CATALOG, re.MULTILINE)) == {event.value for event in Event}
