# SPDX-License-Identifier: MIT
"""Moments as people are shown them: in the host's time zone, or in UTC with ``--utc``, as journalctl does.

Each has the name of its zone. So it can be given to ``--since`` and ``--until``.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from datetime import tzinfo

UtcOption = Annotated[bool, typer.Option("--utc", help="Show times in UTC, not in the host's time zone.")]


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
