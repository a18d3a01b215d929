# SPDX-License-Identifier: MIT
"""The event stream over wide inputs."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from credferry.launcher.hypervisor.events import EventParser, HypervisorEvent

PROPERTIES = st.none() | st.dictionaries(st.text(max_size=5), st.text(max_size=8), max_size=3)
EVENTS = st.lists(st.tuples(st.text(max_size=6), st.text(max_size=6), PROPERTIES), max_size=5)


@given(EVENTS, st.lists(st.integers(1, 40), min_size=1, max_size=20))
def test_every_event_is_found_once_and_in_order(
    events: list[tuple[str, str, dict[str, str] | None]], cuts: list[int]
) -> None:
    """As serde_json writes them, in pieces of any size."""
    stream = "".join(
        json.dumps(
            {"timestamp": {"secs": 1}, "source": source, "event": name, "properties": properties},
            indent=2,
            ensure_ascii=False,
        )
        + "\n\n"
        for source, name, properties in events
    ).encode()
    parser = EventParser()
    found: list[HypervisorEvent] = []
    at = 0
    while at < len(stream):
        size = cuts[at % len(cuts)]
        found += parser.feed(stream[at : at + size])
        at += size
    assert found == [HypervisorEvent(source, name) for source, name, _ in events]


@given(st.lists(st.binary(max_size=30), max_size=10))
def test_nothing_breaks_the_parser(pieces: list[bytes]) -> None:
    """Any bytes are taken, and a whole event after a line's end is still found."""
    parser = EventParser()
    for piece in pieces:
        parser.feed(piece)
    assert parser.feed(b'\n{"source": "vm", "event": "x"}\n')[-1:] == [HypervisorEvent("vm", "x")]
