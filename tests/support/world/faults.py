# SPDX-License-Identifier: MIT
"""Faults of the agent that are known and not mended: the model world excuses them, and nothing else."""

from __future__ import annotations

import enum


class Fault(enum.Enum):
    """A fault of the agent that is known and not mended: the world excuses it."""

    DEPENDENCY_AND_CRASH = "an agent that dies after a job ended with 'dependency' leaves its VM stopped"


SWITCHED_OFF = frozenset(Fault)
