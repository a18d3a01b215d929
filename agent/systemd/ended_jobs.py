# SPDX-License-Identifier: MIT
"""How the last job of a unit since the host's boot has ended, by what PID 1 has written to the journal.

systemd keeps no result of a job that is over, and tells it only to those that listen at that moment. An
operator's stop and a start that another unit's failure has kept from happening leave a unit in one state.
"""

from __future__ import annotations

from contextlib import suppress
from itertools import islice

from credferry.agent.audit.records import reader, text

_ENTRIES_MAX = 200
"""How many of PID 1's entries about a unit are looked at, from the newest."""


def last_result(unit: str) -> str:
    """Say it in systemd's word, such as ``done``; empty where the journal does not tell."""
    with suppress(OSError), reader(None) as entries:
        entries.seek_tail()
        # The newest entry of all is of this boot. The agent's sandbox hides the kernel's word for it.
        boot = text(entries.get_previous().get("_BOOT_ID", ""))
        # All of these are trusted but the last: journald adds them, and PID 1 alone has that number.
        entries.add_match(_BOOT_ID=boot)
        entries.add_match(_PID="1")
        entries.add_match(UNIT=unit)
        entries.seek_tail()
        newest = iter(entries.get_previous, {})
        for entry in islice(newest, _ENTRIES_MAX):
            if "JOB_RESULT" in entry:
                return text(entry["JOB_RESULT"])
    return ""
