# SPDX-License-Identifier: MIT
"""What a check has found: how bad it is, what it is, why it matters, and how to repair it."""

from __future__ import annotations

import enum
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


AS_ROOT = "run credferry doctor as root"
"""The remedy for what only root can look at."""


class Severity(enum.StrEnum):
    """How bad a finding is."""

    OK = "ok"
    HINT = "hint"
    """Worth knowing, or not visible to this process; rotations work."""
    PROBLEM = "problem"
    """It makes a rotation fail, get lost or be late, or soon will."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding. ``check`` is a stable name. ``vm`` is empty for a finding about the host.

    ``commands`` are for a POSIX shell as root, in this order. Together they repair it. If the repair depends
    on what the operator wants, only ``remedy`` says what to do. No field contains a secret value.
    """

    severity: Severity
    check: str
    what: str
    vm: str = ""
    why: str = ""
    remedy: str = ""
    commands: tuple[str, ...] = ()


class UnseenError(Exception):
    """This process cannot examine something. The text says what, and why."""


def ok(check: str, what: str, vm: str = "") -> Finding:
    """Make a finding that says that all is well."""
    return Finding(Severity.OK, check, what, vm)


def hint(
    check: str, what: str, *, vm: str = "", why: str = "", remedy: str = "", commands: Sequence[str] = ()
) -> Finding:
    """Make a finding that is worth knowing."""
    return Finding(Severity.HINT, check, what, vm, why, remedy, tuple(commands))


def problem(
    check: str, what: str, *, vm: str = "", why: str, remedy: str, commands: Sequence[str] = ()
) -> Finding:
    """Make a finding that needs a repair."""
    return Finding(Severity.PROBLEM, check, what, vm, why, remedy, tuple(commands))


def unseen(check: str, what: str, vm: str = "") -> Finding:
    """Make a finding about something that could not be examined."""
    remedy = "correct the other findings first, then run doctor again" if os.geteuid() == 0 else AS_ROOT
    return hint(check, f"not checked: {what}", vm=vm, remedy=remedy)
