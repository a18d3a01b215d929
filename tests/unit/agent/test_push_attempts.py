# SPDX-License-Identifier: MIT
"""Several attempts of one push, and what is noted if they end early, in doubt, or with different answers."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from credferry.agent.reconcile.decision import State
from credferry.agent.store.records import Outcome
from credferry.launcher.errors import Exit
from tests.unit.agent.test_pushes import BOTH, PUSH, fail, pushed
from tests.unit.agent.test_rollout import ORDER, A, Host, hosted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """Two live VMs that are due, where a push is tried three times."""
    yield from hosted(tmp_path, BOTH, "attempts = 3")


def fail_in_turn(host: Host, *statuses: int) -> None:
    """Have the pushes end with these statuses, one after another."""
    results: Iterator[Callable[[str], str]] = iter([host.loop.fail_push(status) for status in statuses])

    def push(unit: str) -> str:
        return next(results)(unit)

    host.units.push = push


def in_the_pause(host: Host, monkeypatch: pytest.MonkeyPatch, do: Callable[[], None]) -> None:
    """Have something happen in the pause between two attempts."""

    def wait(_seconds: float | None = None) -> bool:
        do()
        return host.rollout.stop.is_set()

    monkeypatch.setattr(host.rollout.stop, "wait", wait)


def test_the_agent_stops_during_a_push(host: Host) -> None:
    """The next run of the agent goes on from what is noted: a push was asked for, and has no known end."""

    def push(unit: str) -> str:
        host.rollout.stop.set()
        return host.loop.fail_push(Exit.LATER)(unit)

    host.units.push = push
    assert host.rollout.restart("a", host.units) is State.CHANGING
    attempt, noted = host.store.attempt("a"), pushed(host)
    assert attempt is not None
    assert noted is not None
    assert (attempt.outcome, noted.asked) == (Outcome.RESTARTING, 2)
    assert host.units.pushes == [PUSH]


def test_the_agent_stops_between_two_attempts(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """No other attempt follows, and the record of the push stays."""
    fail(host, Exit.LATER)
    in_the_pause(host, monkeypatch, host.rollout.stop.set)
    assert host.rollout.restart("a", host.units) is State.CHANGING
    attempt = host.store.attempt("a")
    assert attempt is not None
    assert attempt.outcome is Outcome.RESTARTING
    assert host.units.pushes == [PUSH]


@pytest.mark.parametrize("how", ["restarted", "stopped"])
def test_a_vm_that_changes_between_two_attempts(
    host: Host, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """There is nothing left to push to that invocation, and nothing has failed."""
    fail(host, Exit.LATER)
    do = host.loop.start_vm if how == "restarted" else host.loop.stop_vm
    in_the_pause(host, monkeypatch, lambda: do("a"))
    assert host.rollout.restart("a", host.units) is State.CHANGING
    assert host.store.attempt("a") is None
    assert host.units.pushes == [PUSH]


def test_each_pause_is_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As before the attempts of a restart."""
    pauses: list[float] = []

    def wait(seconds: float | None = None) -> bool:
        pauses.append(seconds or 0.0)
        return False

    for host in hosted(tmp_path, BOTH, "attempts = 4\nretry_seconds = 5"):
        fail(host, Exit.LATER)
        monkeypatch.setattr(host.rollout.stop, "wait", wait)
        host.rollout.restart("a", host.units)
    assert pauses == [5, 10, 20]


def test_a_refusal_after_an_unknown_end_leaves_the_doubt(host: Host) -> None:
    """The guest may hold what the first attempt brought. Its second answer does not end the doubt."""
    fail_in_turn(host, Exit.UNKNOWN, Exit.GUEST)
    assert host.rollout.restart("a", host.units) is State.CHANGING
    noted = pushed(host)
    assert noted is not None
    assert noted.asked == 2
    assert len(host.units.pushes) == 2


def test_refusals_alone_leave_no_doubt(host: Host) -> None:
    """What was noted before the push is noted again: of an earlier push, or nothing."""
    fail_in_turn(host, Exit.LATER, Exit.GUEST)
    assert host.rollout.restart("a", host.units) is State.CHANGING
    assert pushed(host) is None
    host.units.push = host.loop.push
    host.change("three")
    assert host.rollout.restart("a", host.units) is State.IN_STEP
    before = pushed(host)
    assert before is not None
    host.change("four")
    fail(host)
    assert host.rollout.restart("a", host.units) is State.CHANGING
    assert pushed(host) == before


def test_a_key_that_goes_during_a_push(host: Host) -> None:
    """PID 1 can open nothing then. That is no failure of the generation, and nothing is restarted for it."""

    def push(unit: str) -> str:
        host.loop.key.chmod(0o600)
        return host.loop.fail_push(243)(unit)

    host.units.push = push
    assert host.rollout.restart("a", host.units) is State.CHANGING
    assert host.store.attempt("a") is None
    assert host.units.restarts == []


def test_what_failed_in_the_guest_is_named(host: Host) -> None:
    """The record of the failure says where to look."""
    fail(host, Exit.UNDONE)
    host.rollout.restart("a", host.units)
    attempt = host.store.attempt("a")
    assert attempt is not None
    assert "a unit in its guest failed with the new values" in attempt.reason
    assert f"journalctl -u {PUSH}" in attempt.reason


def test_without_knowing_what_runs_nothing_is_pushed(host: Host) -> None:
    """A restart makes it known."""
    vm, manifest = host.rollout.config.vm("a"), host.store.current("a")
    assert manifest is not None
    now = host.look("a").observed[0]
    for less in (replace(now, evidence=None), replace(now, unit=None)):
        assert host.rollout.pusher.push(vm, manifest, less, host.units, order="") is None
    assert host.units.pushes == []


def test_a_rollback_to_what_a_vm_was_started_with(host: Host) -> None:
    """Its start is no proof of what the guest holds since a push, so the rollback restarts it."""
    host.units.push = host.loop.push
    assert host.rollout.restart("a", host.units) is State.IN_STEP
    before = host.units.unit(A).invocation_id
    assert host.rollout.roll_back("a", host.units, ORDER) is State.ROLLED_BACK
    assert host.units.restarts == [A]
    assert host.units.unit(A).invocation_id != before
    runs = host.look("a").observed[0].runs
    assert runs is not None
    assert runs.generation == 1


@pytest.mark.parametrize(("live_windows", "pushes", "restarts"), [(True, 1, 2), (False, 0, 1)])
def test_what_counts_for_the_rate(tmp_path: Path, live_windows: bool, pushes: int, restarts: int) -> None:
    """A restart always counts; a push unless pushes are free from windows and rates."""
    vms = BOTH.replace("[vms.a]\n", "[vms.a]\nrestarts_per_hour = 9\n")
    for host in hosted(tmp_path, vms, f"attempts = 1\nlive_windows = {str(live_windows).lower()}"):
        fail(host)
        assert host.rollout.restart("a", host.units) is State.CHANGING
        assert len(host.store.restarts("a")) == pushes
        assert host.rollout.restart("a", host.units) is State.IN_STEP
        assert len(host.store.restarts("a")) == restarts
