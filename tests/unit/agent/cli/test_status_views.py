# SPDX-License-Identifier: MIT
"""What ``credferry status`` shows first, and what it never leaves out."""

from __future__ import annotations

from datetime import UTC
from zoneinfo import ZoneInfo

import msgspec
import pytest

from credferry.agent.cli import status_views as views
from credferry.agent.cli.documents import Generation, Published, StatusRow
from credferry.agent.cli.times import moment
from credferry.agent.reconcile.decision import State
from credferry.agent.reconcile.status import Arrival

NAMES = (
    *("customer-api-gateway-eu-central", "payments-ledger-primary-frankfurt", "identity-provider-keycloak"),
    *("metrics-long-term-storage", "internal-registry-mirror", "build-worker-x86-64-linux"),
)
FAILED = "its unit fails again and again, with result 'exit-code'; rolled back to generation 1"


def row(vm: str, state: State = State.IN_STEP, *, reason: str = "", held: bool = False) -> StatusRow:
    """A VM's row."""
    return StatusRow(
        vm=vm,
        unit=f"microvm@{vm}.service",
        unit_state="active (running)",
        state=state,
        since="2026-11-28T18:24:13Z",
        published=Published(digest="22c99ee29e82", credentials={}),
        sealed=Generation(generation=2, digest=None),
        running=Generation(generation=2, digest=None),
        held=held,
        last_result=reason or "started on generation 2",
        system=None,
        reasons=[reason] if reason else [],
    )


@pytest.fixture
def thirty() -> list[StatusRow]:
    """Thirty VMs with long names; the last ones are those that need attention."""
    made = [row(f"{NAMES[number % 6]}-{number // 6 + 1:02}") for number in range(27)]
    waiting = row("waits", State.WAITING, reason="until its window opens")
    return [*made, row("holds", held=True), waiting, row("fails", State.FAILED, reason=FAILED)]


def texts(rows: list[StatusRow], columns: int = 80) -> list[str]:
    """The table on a terminal."""
    return [text for text, _ in views.lines(rows, columns, UTC)]


def test_a_summary_counts_the_worst_first(thirty: list[StatusRow]) -> None:
    """One line says how many VMs are in which state."""
    assert views.summary(thirty) == "30 VMs: 1 failed, 1 waiting, 28 in step".replace(
        "28 in step", "27 in step, 1 in step, held"
    )
    assert views.summary([row("web")]) == "1 VM: 1 in step"


def test_thirty_vms_in_eighty_columns(thirty: list[StatusRow]) -> None:
    """What needs attention comes first, every name is whole, and no line is longer than the terminal."""
    lines = texts(thirty)
    assert lines[1].split()[:2] == ["fails", "failed"]
    assert next(line for line in lines[2:] if not line.startswith("  ")).split()[0] == "waits"
    assert all(any(line.split()[0] == each.vm for line in lines) for each in thirty)
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    ("columns", "missing"),
    [
        (200, set()),
        (100, {"PUBLISHED"}),
        (80, {"PUBLISHED", "SINCE"}),
        (50, {"PUBLISHED", "SINCE", "RUNNING"}),
    ],
)
def test_columns_leave_in_a_set_order(thirty: list[StatusRow], columns: int, missing: set[str]) -> None:
    """PUBLISHED goes before SINCE, and that before RUNNING; STATE and SEALED stay."""
    headings = {"VM", "STATE", "SINCE", "PUBLISHED", "SEALED", "RUNNING"}
    assert set(texts(thirty, columns)[0].split()) - {"REASON"} == headings - missing


def test_a_held_vm_says_so_in_any_state() -> None:
    """An operator sees a hold although nothing is due."""
    assert texts([row("web", held=True)])[1].split("  ")[1] == "in step, held"
    assert views.shown_state(row("web", State.HELD, held=True)) == "held"


def test_a_pushed_generation_says_so() -> None:
    """The table marks a generation that a guest took by a push."""
    pushed = msgspec.structs.replace(row("web"), arrived=Arrival.PUSH)
    assert "2, pushed" in texts([pushed])[1]
    assert "pushed" not in texts([msgspec.structs.replace(row("web"), arrived=Arrival.START)])[1]


@pytest.mark.parametrize("state", [State.RESTART_DUE, State.PUSH_DUE, State.SEAL_DUE, State.WAITING])
def test_without_an_agent_nothing_is_due(state: State) -> None:
    """What an agent would do is shown as a lack of the agent, with what it would do."""
    lonely = msgspec.structs.replace(row("web", state), agent=False)
    assert views.shown_state(lonely) == "no agent"
    assert f"{state.value}, once an agent runs" in texts([lonely], 200)[1]
    assert views.shown_state(msgspec.structs.replace(row("web"), agent=False)) == "in step"


def test_a_result_is_not_told_twice(capsys: pytest.CaptureFixture[str]) -> None:
    """In a pipe, which has both columns, LAST RESULT does not repeat REASON."""
    views.print_rows([row("web", State.FAILED, reason=FAILED)], UTC)
    assert capsys.readouterr().out.count(FAILED) == 1


def test_what_does_not_fit_is_counted(thirty: list[StatusRow]) -> None:
    """With fewer lines than VMs, the last line says how many more there are, and in which states."""
    lines = [text.removeprefix("* ") for text, _ in views.fitted(thirty, 80, 12, UTC)]
    assert len(lines) <= 12
    assert lines[1].split()[0] == "fails"
    left = 30 - sum(any(line.split()[0] == each.vm for line in lines) for each in thirty)
    assert lines[-1].strip().startswith(f"and {left} more: ")
    assert len(views.fitted(thirty, 80, 100, UTC)) == len(texts(thirty))


def test_changed_rows_are_marked(thirty: list[StatusRow]) -> None:
    """A row that has just changed begins with a star, the others with a blank."""
    marked = views.fitted(thirty, 80, 100, UTC, {"holds"})
    assert [(text.split()[1], style) for text, style in marked if text.startswith("*")] == [
        ("holds", "marked")
    ]
    assert views.key(thirty[0]) != views.key(msgspec.structs.replace(thirty[0], state=State.CHANGING))


@pytest.mark.parametrize(
    ("zone", "shown"),
    [("UTC", "18:24:13 UTC"), ("Europe/Berlin", "19:24:13 CET"), ("America/New_York", "13:24:13 EST")],
)
def test_a_moment_names_its_zone(zone: str, shown: str) -> None:
    """Each moment has the name of the time zone that it is in."""
    assert moment("2026-11-28T18:24:13Z", ZoneInfo(zone)) == f"2026-11-28 {shown}"
