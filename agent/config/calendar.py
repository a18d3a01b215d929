# SPDX-License-Identifier: MIT
"""Moments and restart windows in systemd's syntax. systemd-analyze parses them, not this module."""

from __future__ import annotations

import os
import subprocess
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from credferry.agent.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from credferry.agent.config.model import Config, Window

_ASK_SECONDS = 10.0
_NEVER = float("inf")


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run systemd-analyze in the locale C.

    Raises `OSError` where it cannot run, `TimeoutExpired` where it does not end in time, and
    `ValueError` for a NUL.
    """
    return subprocess.run(
        ["systemd-analyze", *arguments],
        env={**os.environ, "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        text=True,
        timeout=_ASK_SECONDS,
    )


def next_elapse(event: str, after: float) -> float:
    """The first moment of a calendar event after ``after``, in seconds since 1970; infinity for never.

    The event is in systemd's syntax (systemd.time(7)). Without a time zone it is in the host's local time.
    Raises `ConfigurationError` where systemd cannot read it.
    """
    try:
        asked = analyze("calendar", f"--base-time=@{after:.0f}", "--", event)
    except ValueError:  # a NUL
        raise _none(event) from None
    except (OSError, subprocess.TimeoutExpired):
        raise ConfigurationError(
            f"cannot check the window {event!r}: systemd-analyze cannot be run",
            hint="install systemd-analyze",
        ) from None
    if asked.returncode:
        raise _none(event)
    lines = dict(line.strip().partition(": ")[::2] for line in asked.stdout.splitlines())
    # The line "(in UTC)" is there if the host's zone is not UTC.
    moment = lines.get("(in UTC)") or lines.get("Next elapse", "never")
    if moment == "never":
        return _NEVER
    return datetime.strptime(moment, "%a %Y-%m-%d %H:%M:%S UTC").replace(tzinfo=UTC).timestamp()


def _none(event: str) -> ConfigurationError:
    return ConfigurationError(
        f"the window {event!r} is not a calendar event of systemd",
        hint=f"see systemd.time(7), and: systemd-analyze calendar {event!r}",
    )


def opens(windows: Iterable[Window], now: float) -> float:
    """When a window opens next, in seconds since 1970; ``now`` if one is open, infinity for never.

    Raises `ConfigurationError`.
    """
    first = _NEVER
    for window in windows:
        start = next_elapse(window.starts, now - window.minutes * 60)
        if start <= now:
            return now
        first = min(first, start)
    return first


def check_windows(config: Config) -> None:
    """Raise `ConfigurationError` with file and key for a window that systemd cannot read."""
    known: set[Window] = set()
    for vm in config.vms.values():
        for window in vm.windows:
            if window in known:
                continue
            try:
                next_elapse(window.starts, 0)
            except ConfigurationError as error:
                key = "rollout" if window in config.rollout.windows else f"vms.{vm.name}"
                raise ConfigurationError(f"{config.file}: {key}.windows: {error}", hint=error.hint) from None
            known.add(window)
