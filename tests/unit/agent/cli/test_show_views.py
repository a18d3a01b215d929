# SPDX-License-Identifier: MIT
"""What ``credferry show`` tells about a VM."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from credferry.agent.cli.documents import Generation, Published, SecretRow, ShowRow, StatusRow, WiringRow
from credferry.agent.cli.show_views import age, vm_lines
from credferry.agent.config.model import Policy, VmConfig
from credferry.agent.reconcile.decision import State
from credferry.agent.reconcile.status import Arrival
from credferry.agent.store.records import Way
from credferry.launcher.handoff import Kind

NOW = datetime(2026, 11, 28, 19, 0, tzinfo=UTC)
VM = "customer-api-gateway-eu-central-01"


def row(state: State = State.IN_STEP, *, would: tuple[str, ...] = (), agent: bool = True) -> ShowRow:
    """All about a VM."""
    settings = msgspec.to_builtins(VmConfig(name=VM, policy=Policy.RESTART, restarts_per_hour=2))
    status = StatusRow(
        vm=VM,
        unit=f"microvm@{VM}.service",
        unit_state="active (running)",
        state=state,
        since="2026-11-28T18:24:13Z",
        published=Published(digest=None, credentials={}),
        sealed=Generation(generation=2, digest=None),
        running=Generation(generation=1, digest=None),
        held=False,
        last_result="started on generation 1",
        system=None,
        reasons=[],
        agent=agent,
    )
    secret = SecretRow(
        credential="TLS_CERT",
        kind=Kind.PLAIN,
        origin="tls/certificate",
        published="a" * 64,
        running="b" * 64,
        changed="2026-11-25T19:00:00Z",
        expires="2026-12-01T19:00:00Z",
    )
    wiring = WiringRow(launcher=True, file=f"/var/lib/microvms/{VM}/current/bin/microvm-run", drop_ins=[])
    return ShowRow(
        status=status, settings=settings, credentials=[secret], wiring=wiring, next=list(would), rotations=[]
    )


def text(shown: ShowRow, columns: int | None = None) -> str:
    """What is printed."""
    return "\n".join(line for line, _ in vm_lines(shown, columns, UTC, NOW))


def test_settings_without_those_by_default() -> None:
    """What differs from the defaults is shown, and the policy always."""
    line = next(line for line in text(row()).splitlines() if "Settings" in line)
    assert 'policy = "restart"' in line
    assert "restarts_per_hour = 2" in line
    assert "quiet_seconds" not in line


def test_a_credential_has_fingerprint_age_and_end() -> None:
    """Published and running fingerprints are beside the age and the end."""
    line = next(line for line in text(row()).splitlines() if line.startswith("TLS_CERT"))
    assert [each for each in ("a" * 12, "b" * 12, "3 d", "2026-12-01 (in 3 d)") if each in line] == [
        "a" * 12,
        "b" * 12,
        "3 d",
        "2026-12-01 (in 3 d)",
    ]


@pytest.mark.parametrize(
    ("shown", "said"),
    [
        (row(), "nothing until a secret changes"),
        (row(State.FAILED), f"credferry retry {VM}"),
        (row(State.RESTART_DUE, would=("seal A", "restart web")), "seal A, then restart web"),
        (row(State.RESTART_DUE, would=("restart web",), agent=False), "restart web, once an agent runs"),
    ],
)
def test_what_happens_next(shown: ShowRow, said: str) -> None:
    """The next steps are there, or what must happen before there are any."""
    assert said in next(line for line in text(shown).splitlines() if line.startswith("  Next"))


def test_how_a_change_would_arrive() -> None:
    """A live VM shows how it got what it runs, and how it would get a change, or why by a restart."""
    why = "its guest reads KEY only when it boots"
    status = msgspec.structs.replace(row().status, arrived=Arrival.PUSH, next=Way.RESTART, next_reason=why)
    shown = text(msgspec.structs.replace(row(), status=status))
    assert "runs 1 (by a push), sealed 2" in shown
    assert f"reaches it by a restart, because {why}" in shown


def test_it_fits_the_terminal() -> None:
    """No line is wider than the terminal, but for a word that is."""
    for line in text(row(), 80).splitlines():
        assert len(line) <= 80 or len(line.split()) == 1, line


@pytest.mark.parametrize(
    ("ago", "said"),
    [
        (timedelta(0), "0 s"),
        (timedelta(seconds=59), "59 s"),
        (timedelta(minutes=61), "1 h"),
        (timedelta(days=3, hours=5), "3 d"),
        (-timedelta(minutes=5), "in 5 min"),
    ],
)
def test_ages(ago: timedelta, said: str) -> None:
    """An age is in its largest unit."""
    assert age(NOW - ago, NOW) == said
