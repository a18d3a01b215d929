# SPDX-License-Identifier: MIT
"""What doctor shows of its findings, and what it only counts."""

from __future__ import annotations

from credferry.agent.cli import doctor_views as views
from credferry.agent.doctor.finding import AS_ROOT, hint, ok, problem

LONG = (
    "the sealed generation of customer-api-gateway-eu-central-01 is from another host, and cannot be opened"
)
COMMAND = "credferry sync --config /etc/credferry/config.toml --vm customer-api-gateway-eu-central-01"
FINDINGS = [
    ok("configuration", "/etc/credferry/config.toml configures 30 VMs"),
    hint("host.swap", "unencrypted swap: /dev/sda2", why="memory", remedy="encrypt it"),
    problem("vm.generation", LONG, vm="web", why="it cannot start", remedy="seal again", commands=[COMMAND]),
    ok("bus", "systemd answers"),
]


def texts(columns: int | None = 80, *, show_all: bool = False) -> list[str]:
    """What is printed."""
    return [text for text, _ in views.lines(FINDINGS, columns, show_all=show_all)]


def test_problems_come_first_and_what_is_well_is_counted() -> None:
    """By default only problems and hints are shown; the last line has all counts."""
    assert [line for line in texts() if not line.startswith(" ")] == [
        "problem: web: vm.generation",
        "hint: host.swap",
    ]
    assert views.summary(FINDINGS) == "1 problem, 1 hint, 2 ok (--all shows them)"
    assert views.summary([], show_all=True) == "0 problems, 0 hints, 0 ok"


def test_everything_on_request() -> None:
    """With --all the findings that are well follow."""
    assert [line for line in texts(show_all=True) if line.startswith("ok")] == [
        "ok: configuration",
        "ok: bus",
    ]


def test_text_is_wrapped_and_commands_are_not() -> None:
    """Text fits the terminal; a command stays in one piece, to be copied."""
    lines = texts()
    assert any(line.endswith(COMMAND) for line in lines)
    assert max(len(line) for line in lines if COMMAND not in line) <= 80
    assert f"  {LONG}" in texts(None)


def test_what_only_root_sees_is_one_hint() -> None:
    """Without root, thirty checks that cannot look make one finding, not thirty."""
    unseen = [hint("vm.generation", "not checked: sealed generations", remedy=AS_ROOT) for _ in range(30)]
    shown = [text for text, _ in views.lines(unseen, None)]
    assert shown == ["hint: root", "  cannot look: 30 checks need root: vm.generation", f"  do:  {AS_ROOT}"]
    assert len([*views.lines(unseen, None, show_all=True)]) == 90


def test_the_same_of_many_vms_is_said_once() -> None:
    """From three VMs on, one finding names them all, with one command for all; two stay as they are."""
    halted = [
        problem(
            "vm.state",
            f"{vm} is halted: bad failed",
            vm=vm,
            why="it waits",
            remedy=f"see journalctl -u microvm@{vm}.service",
            commands=[f"credferry retry {vm}"],
        )
        for vm in ("web-1", "web-2", "web-3")
    ]
    assert [text for text, _ in views.lines(halted, None)] == [
        "problem: 3 VMs: vm.state",
        "  each is halted: bad failed: web-1, web-2, web-3",
        "  why: it waits",
        "  do:  see journalctl -u microvm@VM.service",
        "       # for vm in web-1 web-2 web-3; do credferry retry ${vm}; done",
    ]
    assert sum(text.startswith("problem") for text, _ in views.lines(halted[:2], None)) == 2
