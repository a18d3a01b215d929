# SPDX-License-Identifier: MIT
"""What the launcher answers if it refuses to do what the doctor asks it about."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import subprocess


@dataclass(frozen=True, slots=True)
class Refusal:
    """What the launcher refuses, and the remedy. ``what`` is empty if the launcher says nothing."""

    what: str
    remedy: str = "see: man credferry-launch"


def refusal(answer: subprocess.CompletedProcess[str]) -> Refusal:
    """The refusal in an answer of ``--check`` or ``--explain``.

    A VM's script may name a launcher of another release, which answers with a line on standard error only.
    Then ``what`` is that line, because it does not show where the remedy begins.
    """
    try:
        said = json.loads(answer.stdout)
        what, remedy = said["refused"], said["hint"]
    except (ValueError, TypeError, KeyError, RecursionError):
        what = remedy = None
    if isinstance(what, str) and isinstance(remedy, str) and what and remedy:
        return Refusal(what, remedy)
    line = next(iter(reversed(answer.stderr.strip().splitlines())), "")
    return Refusal(line.removeprefix("credferry-launch: "))
