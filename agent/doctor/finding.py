# SPDX-License-Identifier: MIT
"""What a check has found: how bad it is, what it is, why it matters, and what mends it."""

from __future__ import annotations

import enum
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class Severity(enum.StrEnum):
    """How bad a finding is."""

    OK = "ok"
    HINT = "hint"
    """Worth knowing, or not to be seen from here; rotations work."""
    PROBLEM = "problem"
    """A rotation fails, is lost or is late because of it, or soon will."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding. ``check`` is a stable name; ``vm`` is empty for what concerns the host.

    ``commands`` are for a POSIX shell as root, in this order; together they mend it. Where no command can
    know what is wanted, ``remedy`` alone says what to do. Nothing in here tells a value.
    """

    severity: Severity
    check: str
    what: str
    vm: str = ""
    why: str = ""
    remedy: str = ""
    commands: tuple[str, ...] = ()


class UnseenError(Exception):
    """Something cannot be looked at from here; the text says what, and why."""


def ok(check: str, what: str, vm: str = "") -> Finding:
    """All is well."""
    return Finding(Severity.OK, check, what, vm)


def hint(
    check: str, what: str, *, vm: str = "", why: str = "", remedy: str = "", commands: Sequence[str] = ()
) -> Finding:
    """Worth knowing."""
    return Finding(Severity.HINT, check, what, vm, why, remedy, tuple(commands))


def problem(
    check: str, what: str, *, vm: str = "", why: str, remedy: str, commands: Sequence[str] = ()
) -> Finding:
    """To be mended."""
    return Finding(Severity.PROBLEM, check, what, vm, why, remedy, tuple(commands))


def unseen(check: str, what: str, vm: str = "") -> Finding:
    """What could not be looked at."""
    remedy = (
        "mend what else is found, and look again" if os.geteuid() == 0 else "run credferry doctor as root"
    )
    return hint(check, f"not seen: {what}", vm=vm, remedy=remedy)
