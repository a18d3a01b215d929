# SPDX-License-Identifier: MIT
"""Parser for the stream of ``--event-monitor``.

cloud-hypervisor writes one pretty-printed JSON object per event, over several lines and with blank lines
between events (event_monitor/src/lib.rs). A read may return any piece of the stream. The parser skips
garbage, and limits how much of an unfinished event it keeps.
"""

from __future__ import annotations

from credferry.launcher.record import FrozenRecord

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_EVENT_MAX: Final = 64 << 10
"""The most bytes of one event. Real events have a few hundred."""


class HypervisorEvent(FrozenRecord):
    """An event of the VMM, such as ``vm`` ``rebooting``."""

    source: str
    name: str


class EventParser:
    """Takes the stream in pieces and returns each event when it is complete."""

    def __init__(self) -> None:
        self._depth = 0
        self._quoted = False
        self._escaped = False
        self._line_start = True
        self._held = bytearray()

    def feed(self, data: bytes) -> list[HypervisorEvent]:
        """The events that end in this piece. Never raises."""
        events: list[HypervisorEvent] = []
        for byte in data:
            if byte == ord("{") and self._line_start:
                # cloud-hypervisor indents lines within an event: the kept bytes are incomplete or garbage.
                self._reset()
            self._line_start = byte == ord("\n")
            if not self._depth and byte != ord("{"):
                continue
            self._held.append(byte)
            self._step(byte)
            if not self._depth or len(self._held) > _EVENT_MAX:
                event = _event(bytes(self._held)) if not self._depth else None
                self._reset()
                if event is not None:
                    events.append(event)
        return events

    def _step(self, byte: int) -> None:
        if self._quoted:
            if self._escaped:
                self._escaped = False
            elif byte == ord("\\"):
                self._escaped = True
            elif byte == ord('"'):
                self._quoted = False
            elif byte == ord("\n"):
                self._quoted = False  # JSON has no line break in a string: this was garbage
        elif byte == ord('"'):
            self._quoted = True
        elif byte == ord("{"):
            self._depth += 1
        elif byte == ord("}"):
            self._depth -= 1

    def _reset(self) -> None:
        self._held.clear()
        self._depth = 0
        self._quoted = self._escaped = False


def _event(data: bytes) -> HypervisorEvent | None:
    import json  # noqa: PLC0415 (takes 4 ms: in the api channel, the first event comes while the VM boots)

    try:
        match json.loads(data):
            case {"source": str(source), "event": str(name)}:
                return HypervisorEvent(source, name)
    except (ValueError, RecursionError):
        pass
    return None
