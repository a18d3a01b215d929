# SPDX-License-Identifier: MIT
"""How the agent judges a push unit: each end of its job, and root's proof."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from credferry.agent.errors import BusError
from credferry.agent.rollout.push_jobs import NotTaken, Proved, PushEnding, Restarted, Undone
from credferry.launcher.errors import Exit
from credferry.launcher.handoff import PUSHED_PARENT
from tests.unit.agent.test_pushes import BOTH, PUSH
from tests.unit.agent.test_rollout import A, Host, hosted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_CREDENTIALS_FAILED = 243


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """Two live VMs that are due."""
    yield from hosted(tmp_path, BOTH)


def run(host: Host) -> PushEnding:
    """Push what is current to VM a."""
    vm, manifest = host.rollout.config.vm("a"), host.store.current("a")
    assert manifest is not None
    invocation = host.units.unit(A).invocation_id
    return host.rollout.pusher.jobs.run(vm, manifest, invocation, host.units)


@pytest.mark.parametrize(
    ("status", "is_certain", "is_passing"),
    [
        (Exit.USAGE, True, False),
        (Exit.CREDENTIALS, True, False),
        (Exit.HYPERVISOR, True, False),
        (Exit.LATER, True, True),
        (Exit.GUEST, True, False),
        (Exit.UNKNOWN, False, True),
        (_CREDENTIALS_FAILED, True, False),
        (1, False, False),
    ],
)
def test_each_exit_status(host: Host, status: int, is_certain: bool, is_passing: bool) -> None:
    """It says if the guest surely holds what it held, and if another push may succeed."""
    host.units.push = host.loop.fail_push(status)
    ended = run(host)
    assert isinstance(ended, NotTaken)
    assert (ended.is_certain, ended.is_passing) == (is_certain, is_passing)
    assert f"journalctl -u {PUSH}" in ended.reason
    assert ("in the guest" in ended.reason) == (status in {Exit.GUEST, Exit.UNKNOWN})


def test_a_unit_in_the_guest_that_fails(host: Host) -> None:
    """The guest has surely put the old values back, and another push of the same would fail as well."""
    host.units.push = host.loop.fail_push(Exit.UNDONE)
    ended = run(host)
    assert isinstance(ended, Undone)
    assert (ended.is_certain, ended.is_passing) == (True, False)
    assert ended.reason.endswith(
        f": see journalctl -u {PUSH}; in the guest, see journalctl -u 'credferry-receive@*'"
    )


@pytest.mark.parametrize(
    ("word", "result"),
    [("failed", "signal"), ("failed", "timeout"), ("timeout", "exit-code"), ("canceled", "success")],
)
def test_a_push_that_is_cut_short(host: Host, word: str, result: str) -> None:
    """A killed or canceled push may have reached the guest; another one can tell."""

    def push(unit: str) -> str:
        host.units.set(unit, result=result, exit_status=Exit.UNDONE)
        return word

    host.units.push = push
    ended = run(host)
    assert isinstance(ended, NotTaken)
    assert (ended.is_certain, ended.is_passing) == (False, True)
    assert ended.reason == f"{PUSH} ended with {word!r}: see journalctl -u {PUSH}"


def test_a_push_that_systemd_refuses(host: Host) -> None:
    """Nothing has reached the guest. The reason is systemd's own."""

    def refuse(_unit: str) -> str:
        raise BusError("the unit is masked", hint="unmask it")

    host.units.push = refuse
    assert run(host) == NotTaken("the unit is masked")


def test_systemd_is_gone(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where systemd cannot be reached at all, that is no end of a push."""

    def gone(_unit: str) -> str:
        raise BusError("the bus is gone", hint="wait")

    host.units.push = gone
    invocation = host.units.unit(A).invocation_id
    monkeypatch.setattr(type(host.units), "unit", lambda _self, name: gone(name))
    vm, manifest = host.rollout.config.vm("a"), host.store.current("a")
    assert manifest is not None
    with pytest.raises(BusError, match="the bus is gone"):
        host.rollout.pusher.jobs.run(vm, manifest, invocation, host.units)


def test_a_proof_is_of_exactly_this_generation(host: Host) -> None:
    """The agent believes root's copy, and asks again if its job has joined an earlier push."""
    pushes: list[str] = []

    def join_once(unit: str) -> str:
        pushes.append(unit)
        return host.loop.push(unit) if pushes[1:] else "done"

    host.units.push = join_once
    assert run(host) == Proved()
    assert pushes == [PUSH] * 2


def test_no_proof_at_all(host: Host) -> None:
    """After three pushes without proof it is not known what the guest holds, and another may tell."""
    host.loop.push(PUSH)
    host.change("three")  # root's copy is of the generation before
    host.units.push = lambda _unit: "done"
    ended = run(host)
    assert isinstance(ended, NotTaken)
    assert (ended.is_certain, ended.is_passing) == (False, True)
    assert "no proof of generation 3" in ended.reason
    assert host.units.pushes == [PUSH] * 3


def test_a_proof_that_is_only_half_there(host: Host) -> None:
    """Systemd may have opened another generation before the push than after it."""
    host.units.push = host.loop.push
    assert run(host) == Proved()
    (host.loop.top / "run" / PUSHED_PARENT / "a@before").unlink()
    host.units.push = lambda _unit: "done"
    assert isinstance(run(host), NotTaken)


@pytest.mark.parametrize("how", ["restarted", "stopped"])
def test_a_vm_that_is_not_the_same_any_more(host: Host, how: str) -> None:
    """A proof says nothing of a VM that was started again or stopped meanwhile."""

    def push(unit: str) -> str:
        word = host.loop.push(unit)
        if how == "restarted":
            host.loop.start_vm("a")
        else:
            host.loop.stop_vm("a")
        return word

    host.units.push = push
    assert run(host) == Restarted()
