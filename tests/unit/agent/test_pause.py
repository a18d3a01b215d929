# SPDX-License-Identifier: MIT
"""The pause between restarts and pushes of different VMs."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from credferry.agent.audit.events import Event
from credferry.agent.config.loading import parse
from credferry.agent.errors import ConfigurationError, StoreError
from credferry.agent.rollout.clock import Clock
from credferry.agent.rollout.pause import Pause, Pausing
from credferry.agent.sealing.keys import CredentialKey
from credferry.agent.store.generations import Store
from credferry.agent.store.records import Attempt, LastTurn, Outcome, Way
from tests.support.loop import Loop

if TYPE_CHECKING:
    from pathlib import Path

VMS = "".join(f'[vms.{vm}.credentials]\nK = {{ text = "k" }}\n' for vm in "abc")
SECRETS = "".join(f'[vms.{vm}.credentials]\nK = {{ secret = "k" }}\n' for vm in "ab")


@dataclass
class Host:
    """A store, and clocks that a test sets."""

    top: Path
    now: float = 1_000.0
    wall: float = 1_700_000_000.0
    limits: str = "pause_seconds = 60\n"
    store: Store = field(init=False)

    def __post_init__(self) -> None:
        self.store = Store(self.top / "state", CredentialKey(b"k" * 4096))

    def pause(self) -> Pause:
        """The pause of an agent that has just started."""
        config = parse(f"[rollout]\n{self.limits}{VMS}".encode(), self.top / "config.toml")
        return Pause(config, self.store, Clock(lambda: self.now, lambda: self.now, lambda: self.wall))

    def pass_time(self, seconds: float) -> None:
        """Let time pass, by each clock."""
        self.now += seconds
        self.wall += seconds


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A host on which no VM was restarted yet."""
    return Host(tmp_path)


def test_others_wait_until_the_pause_is_over(host: Host) -> None:
    """A VM waits from when the other one ended, to the moment, and also for an agent that starts anew."""
    with host.pause().turn("a"):
        host.pass_time(10)
    until = host.wall + 60
    host.pass_time(59.5)
    assert host.pause().left("b") == Pausing("a", 0.5, until)
    host.pass_time(0.5)
    assert host.pause().left("b") is None


def test_a_vm_does_not_wait_for_itself(host: Host) -> None:
    """The pause is between different VMs."""
    with host.pause().turn("a"):
        pass
    assert host.pause().left("a") is None
    assert host.pause().claim("a") is not None


def test_the_last_of_several_counts(host: Host) -> None:
    """A VM waits for the other VM whose turn was last, also if it had a turn itself in between."""
    for vm in "abc":
        with host.pause().turn(vm):
            pass
        host.pass_time(5)
    found = host.pause().left("c")
    assert found is not None
    assert (found.vm, found.seconds) == ("b", 50.0)


@pytest.mark.parametrize("way", list(Way))
def test_no_vm_begins_while_another_has_its_turn(host: Host, way: Way) -> None:
    """A restart or push under way is waited for, at most as long as it would hold a slot."""
    host.limits = "pause_seconds = 1\nslot_seconds = 30\n"
    assert host.pause().claim("a") is not None
    host.store.record_attempt("a", Attempt("1", Outcome.RESTARTING, way=way))
    host.pass_time(20)
    assert host.pause().left("b") == Pausing("a", 10.0, 0.0)
    host.pass_time(10)
    assert host.pause().left("b") is None


def test_two_threads_do_not_begin_at_once(host: Host) -> None:
    """Once one VM has begun, the other one may not, though nothing held it back a moment ago."""
    first, second = host.pause(), host.pause()
    assert second.left("b") is None
    assert first.claim("a") is not None
    assert second.claim("b") is None


def test_a_claimed_turn_records_its_end(host: Host) -> None:
    """The claim has recorded the beginning. The turn writes only once, at its end."""
    began = host.now
    turn = host.pause().claim("a")
    assert turn is not None
    host.pass_time(5)
    with turn:
        assert host.store.last_turn("a") == LastTurn(began, 1_700_000_000.0)
        host.pass_time(5)
    assert host.store.last_turn("a") == LastTurn(began + 10, 1_700_000_010.0)


def test_a_moment_of_an_earlier_boot_holds_nothing_up(host: Host) -> None:
    """The clock counts from the host's boot: a moment that has not come yet is of an earlier one."""
    host.store.record_last_turn("a", LastTurn(host.now + 1, host.wall))
    assert host.pause().left("b") is None


def test_the_end_that_is_told_does_not_change(host: Host) -> None:
    """It comes from the record, so that the clocks' rounding changes no message; a jump of a clock does."""
    with host.pause().turn("a"):
        pass
    until = host.wall + 60
    host.pass_time(10)
    host.wall += 0.4
    assert host.pause().left("b") == Pausing("a", 50.0, until)
    host.wall = until - 50 + 2
    assert host.pause().left("b") == Pausing("a", 50.0, host.wall + 50)


def test_without_a_pause_nothing_is_noted(host: Host) -> None:
    """By default no record is written, and no VM waits."""
    host.limits = ""
    with host.pause().turn("a"):
        turn = host.pause().claim("b")
        assert turn is not None
        with turn:
            pass
    assert host.store.last_turn("a") is None
    assert host.store.last_turn("b") is None


def test_a_full_disk_stops_no_work_that_has_begun(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A VM that is down comes up all the same. No other VM begins."""

    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", fail)
    with host.pause().turn("a"):
        pass
    with pytest.raises(StoreError):
        host.pause().claim("b")


@pytest.mark.parametrize("value", ["-1", "86401", '"a minute"', "nan"])
def test_a_pause_that_is_none(host: Host, value: str) -> None:
    """It is refused, with the key."""
    host.limits = f"pause_seconds = {value}\n"
    with pytest.raises(ConfigurationError, match=r"rollout\.pause_seconds"):
        host.pause()


def test_an_agent_pauses_between_vms(tmp_path: Path) -> None:
    """The second VM waits, with the end of the pause, after a restart of the agent as well."""
    loop = Loop(tmp_path, SECRETS)
    loop.configure(SECRETS, "pause_seconds = 3600\nconcurrency = 2\n")
    loop.publish(k="1")
    with loop.made():
        loop.turn()
    for vm in "ab":
        loop.start_vm(vm)
    loop.publish(k="2")

    def waits() -> bool:
        """Whichever of the two was not first."""
        first = loop.units.restarts[0].removeprefix("microvm@").removesuffix(".service")
        other = "b" if first == "a" else "a"
        messages = [message for event, message in loop.told() if event is Event.WAITING]
        said = f"{other}: its rotation waits until the pause after {first} is over, "
        assert all(message.startswith(said) for message in messages)
        return bool(messages)

    for _ in range(2):
        loop.sent.clear()
        with loop.running():
            loop.turn(until=lambda: loop.units.restarts)
            loop.turn(until=waits)
            assert len(loop.units.restarts) == 1


def test_a_restart_writes_its_moment_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent writes it once before it asks systemd, and once when the restart has ended."""
    loop = Loop(tmp_path, SECRETS)
    loop.configure(SECRETS, "pause_seconds = 3600\n")
    loop.publish(k="1")
    with loop.made():
        loop.turn()
    loop.start_vm("a")
    written: list[int] = []
    record = Store.record_last_turn

    def count(store: Store, vm: str, last: LastTurn) -> None:
        written.append(len(loop.units.restarts))
        record(store, vm, last)

    monkeypatch.setattr(Store, "record_last_turn", count)
    loop.publish(k="2")
    with loop.running():
        loop.turn(until=lambda: len(written) > 1 and written[-1])
    assert written == [0, 1]
