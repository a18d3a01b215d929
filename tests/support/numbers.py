# SPDX-License-Identifier: MIT
"""Numbers that runs of the tests yield: how many crash points were struck, how many inputs were tried.

They are kept in the cache, the last of each, and shown by docs/reliability.md.
"""

from __future__ import annotations

import enum
import fcntl
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from tests.support.cache import cache_directory

if TYPE_CHECKING:
    from pathlib import Path


class Number(enum.StrEnum):
    """What is counted. The value is what people read."""

    MODEL_RUNS = "histories of the model world explored"
    MODEL_STATES = "states of the model world explored"
    FLEET_RUNS = "histories of a fleet explored"
    FLEET_MOMENTS = "moments of a fleet checked"
    FLEET_REVISIONS = "revisions of etcd checked, of fleets at size"
    CRASH_POINTS = "effects at which the agent was killed"
    RANDOM_KILLS = "kills at random moments"
    PUSHES_KILLED = "pushes with kills of the agent or the push unit"
    FAULTS = "faults of the host survived"
    FUZZED = "inputs fuzzed"
    SOAK_ROTATIONS = "rotations soaked"
    SOAK_LOST = "rotations lost in the soak"
    SOAK_DOUBLED = "restarts doubled in the soak"
    SOAK_LATE = "rotations late in the soak"
    LEAKS = "leaks found"
    LEAK_PATHS = "paths on which the canary travelled"
    PROTECTIONS = "protections taken out"
    PROTECTIONS_UNNOTICED = "protections whose loss a named test does not notice"
    SECURITY_SCORE = "systemd-analyze security, credferry.service (0 is best, 10 worst)"


def numbers_file() -> Path:
    """Where the numbers are kept: JSON, what is counted to its value and when it was counted."""
    return cache_directory() / "numbers.json"


def note(number: Number, value: float) -> None:
    """Keep a number in place of the one before it. Several processes may do so at once."""
    path = numbers_file()
    with path.open("a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        known = json.loads(file.read() or "{}")
        known[number.name] = {
            "value": value,
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        file.seek(0)
        file.truncate()
        json.dump(known, file, indent=2, sort_keys=True)


def noted() -> dict[Number, tuple[float, str]]:
    """All numbers that were kept, each with when, in UTC."""
    try:
        known = json.loads(numbers_file().read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return {
        number: (known[number.name]["value"], known[number.name]["when"])
        for number in Number
        if number.name in known
    }
