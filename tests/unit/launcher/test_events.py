# SPDX-License-Identifier: MIT
"""The event monitor's stream."""

from __future__ import annotations

import pytest

from credferry.launcher.hypervisor.events import EventParser, HypervisorEvent

BOOTED = b"""{
  "timestamp": {
    "secs": 0,
    "nanos": 1
  },
  "source": "vm",
  "event": "booted",
  "properties": null
}

"""
REBOOTING = rb"""{
  "timestamp": {
    "secs": 9,
    "nanos": 1
  },
  "source": "vm",
  "event": "rebooting",
  "properties": {
    "id": "a}\"{b"
  }
}

"""
BOTH = [HypervisorEvent("vm", "booted"), HypervisorEvent("vm", "rebooting")]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1000])
def test_events_are_found_however_the_stream_is_cut(size: int) -> None:
    """Objects over several lines, in any pieces, braces and quotes within strings."""
    parser = EventParser()
    stream = BOOTED + REBOOTING
    found = [event for at in range(0, len(stream), size) for event in parser.feed(stream[at : at + size])]
    assert found == BOTH


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"garbage\n",
        b"}}}\n",
        b'{\n  "cut off": \n',
        b'{\n  "open": "string\n',
        b"{{{{{{\n",
        b"\xff\x00\xfe\n",
        b"[1, 2]\n",
        b'{"source": 1, "event": 2}\n',
        b"{}\n",
        b"{" * 5000 + b"\n",
        b'{"a": ' + b"1" * 200_000 + b"\n",
    ],
)
def test_garbage_costs_no_later_event(garbage: bytes) -> None:
    """Whatever stood before it, an event at the start of a line is found."""
    parser = EventParser()
    assert parser.feed(garbage) == []
    assert parser.feed(BOOTED + garbage + REBOOTING) == BOTH


def test_what_is_kept_is_bounded() -> None:
    """A stream that never ends an event does not fill the memory."""
    parser = EventParser()
    for _ in range(10):
        parser.feed(b'{"a": "' + b"x" * 65_536)
    assert len(parser._held) <= 65_537
