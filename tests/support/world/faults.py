# SPDX-License-Identifier: MIT
"""Faults of the agent that are known and not mended: the model world excuses them, and nothing else."""

from __future__ import annotations

import enum


class Fault(enum.Enum):
    """A fault of the agent that is known and not mended: the world excuses it."""

    DEPENDENCY_AND_CRASH = "an agent that dies after a job ended with 'dependency' leaves its VM stopped"
    BEHIND_AFTER_A_KEY = "a VM that was behind at a change of the key is restarted for what it runs already"
    NO_WAY_BACK_AFTER_A_KEY = "generations of the key before cannot be opened, so a failed VM cannot go back"


SWITCHED_OFF = frozenset(Fault)
