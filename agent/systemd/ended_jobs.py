# SPDX-License-Identifier: MIT
"""How the last job of a unit since the host's boot ended, according to PID 1's journal entries.

systemd does not keep the result of an ended job; it only sends a signal when the job ends. An operator's
stop, and a start that failed because of another unit, leave a unit in the same state. The result tells
them apart.
"""

from __future__ import annotations

from contextlib import suppress
from itertools import islice

from credferry.agent.audit.records import reader, text

_ENTRIES_MAX = 200
"""Limit for the entries of PID 1 about a unit that are read, newest first."""


def last_result(unit: str) -> str:
    """The result in systemd's word, such as ``done``; empty where the journal has none."""
    with suppress(OSError), reader(None) as entries:
        entries.seek_tail()
        # The newest entry is from this boot. The agent's sandbox hides the kernel's own boot id.
        boot = text(entries.get_previous().get("_BOOT_ID", ""))
        # journald itself adds _BOOT_ID and _PID, so they can be trusted. Only PID 1 has that number.
        entries.add_match(_BOOT_ID=boot)
        entries.add_match(_PID="1")
        entries.add_match(UNIT=unit)
        entries.seek_tail()
        newest = iter(entries.get_previous, {})
        for entry in islice(newest, _ENTRIES_MAX):
            if "JOB_RESULT" in entry:
                return text(entry["JOB_RESULT"])
    return ""
