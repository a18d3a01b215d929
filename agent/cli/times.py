# SPDX-License-Identifier: MIT
"""Moments as people are shown them: in the host's time zone, or in UTC with ``--utc``, as journalctl does.

Each has the name of its zone. So it can be given to ``--since`` and ``--until``.
"""

from __future__ import annotations

import re
import subprocess
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from credferry.agent.config.calendar import analyze

if TYPE_CHECKING:
    from datetime import tzinfo

UtcOption = Annotated[bool, typer.Option("--utc", help="Show times in UTC, not in the host's time zone.")]

_SHOWN = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d{1,6})?) (\S+)")


def zone(*, utc: bool) -> tzinfo | None:
    """The time zone to show moments in; None for the host's."""
    return UTC if utc else None


def moment(time: datetime | str, where: tzinfo | None, *, milliseconds: bool = False) -> str:
    """A moment, or its RFC 3339 form, such as ``2026-11-28 19:24:13 CET``."""
    if isinstance(time, str):
        time = datetime.fromisoformat(time)
    there = time.astimezone(where)
    fraction = f".{there.microsecond // 1000:03d}" if milliseconds else ""
    return f"{there:%Y-%m-%d %H:%M:%S}{fraction} {there:%Z}"


def parse_time(text: str | None, option: str) -> float | None:
    """A moment as `moment` shows it, or as journalctl takes it, in seconds since 1970.

    systemd itself reads the latter. Raises `typer.BadParameter`.
    """
    if text is None:
        return None
    shown = _as_shown(text)
    if shown is not None:
        return shown
    try:
        asked = analyze("timestamp", "--", text)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        raise typer.BadParameter("cannot run systemd-analyze to read the time", param_hint=option) from None
    found = re.search(r"UNIX seconds: @([0-9.]+)", asked.stdout)
    if asked.returncode or found is None:
        raise typer.BadParameter(f"{text!r} is not a time: see systemd.time(7)", param_hint=option)
    return float(found[1])


def _as_shown(text: str) -> float | None:
    """A moment in the form of `moment`; None for another form.

    systemd takes the names of few time zones.
    """
    found = _SHOWN.fullmatch(text.strip())
    if found is None:
        return None
    try:
        time = datetime.fromisoformat(found[1])
    except ValueError:
        return None
    if found[2] == "UTC":
        return time.replace(tzinfo=UTC).timestamp()
    # At the end of summer time an hour comes twice; the name of the zone tells which one is meant.
    for fold in (0, 1):
        there = time.replace(fold=fold).astimezone()
        if f"{there:%Z}" == found[2]:
            return there.timestamp()
    return None
