# SPDX-License-Identifier: MIT
"""What is shown as a moment can be given as one."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
import typer

from credferry.agent.cli.times import moment, parse_time

if TYPE_CHECKING:
    from collections.abc import Iterator

SUMMER, WINTER = (
    datetime(2026, 7, 28, 17, 24, 13, 247_000, UTC),
    datetime(2026, 11, 28, 18, 24, 13, tzinfo=UTC),
)
CHANGE = datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
"""In Berlin 02:30 CEST; an hour later it is 02:30 CET."""


@pytest.fixture(params=["UTC", "Europe/Berlin", "America/Sao_Paulo", "Asia/Kolkata"])
def zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The host's time zone."""
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield request.param
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("zone")
@pytest.mark.parametrize("when", [SUMMER, WINTER, CHANGE, CHANGE + timedelta(hours=1)])
def test_what_is_shown_can_be_given(when: datetime) -> None:
    """In any zone, in summer and in winter, and in the hour that comes twice; and with --utc."""
    for where in (None, UTC):
        assert parse_time(moment(when, where, milliseconds=True), "--since") == when.timestamp()


@pytest.mark.usefixtures("zone")
@pytest.mark.parametrize("text", ["2026-07-28 17:24:13 XYZ", "2026-13-28 17:24:13 UTC", "soon"])
def test_what_is_no_time_is_refused(text: str) -> None:
    """An unknown zone, an impossible date and other words are answered with a usage error."""
    with pytest.raises(typer.BadParameter, match="is not a time"):
        parse_time(text, "--since")


def test_systemd_reads_the_other_forms() -> None:
    """What journalctl takes is taken."""
    assert parse_time("@1700000000", "--since") == 1_700_000_000
    assert parse_time("1970-01-02 UTC", "--since") == 86_400
    assert parse_time(None, "--since") is None
