# SPDX-License-Identifier: MIT
"""What holds a due restart back: asked anew each time, by clocks that may jump."""

from __future__ import annotations

import fcntl
import subprocess
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pytest

from agent import nixos, source
from agent.calendar import next_elapse
from agent.config import Config, parse
from agent.desired import Desired
from agent.errors import ConfigurationError
from agent.keys import CredentialKey
from agent.notes import Attempt, Outcome
from agent.observe import Look
from agent.pace import HOUR, Clock, Pacer
from agent.reconcile import Decision, Observed, State
from agent.store import Store
from agent.units import UnitState
from launcher.handoff import Channel, Delivery, Manifest

if TYPE_CHECKING:
    from pathlib import Path

DELIVERY = Delivery(Channel.API, 252)
VMS = "".join(f'[vms.{vm}.credentials]\nK = {{ text = "k" }}\n' for vm in "abc")


@dataclass
class World:
    """Due VMs, and clocks that a test sets."""

    directory: Path
    now: float = 1_000_000.0
    wall: float = 1_700_000_000.0
    digests: dict[str, str] = field(default_factory=lambda: dict.fromkeys("abc", "1"))
    runs: dict[str, str] = field(default_factory=lambda: dict.fromkeys("abc", "run"))
    due: set[str] = field(default_factory=lambda: set("abc"))
    up_for: dict[str, float] = field(default_factory=lambda: dict.fromkeys("abc", 10_000.0))
    attempts: dict[str, Attempt] = field(default_factory=dict)
    down: set[str] = field(default_factory=set)

    def pacer(self, text: str) -> Pacer:
        """A pacer of a configuration."""
        lock = f'[rollout]\nswitch_lock = "{self.directory / "switch"}"\n'
        config = parse((lock + text).encode(), self.directory / "config.toml")
        clock = Clock(lambda: self.now, lambda: self.now, lambda: self.wall)
        self.config = config
        return Pacer(config, Store(self.directory / "state", CredentialKey(b"k" * 4096)), clock)

    def look(self) -> Look:
        """One look at all VMs."""
        observed = tuple(self._observed(self.config, name) for name in self.config.vms)
        decisions = tuple(
            Decision(each.vm, State.RESTART_DUE, restart=True)
            if each.vm.name in self.due
            else Decision(each.vm, State.IN_STEP)
            for each in observed
        )
        return Look(source.NOTHING, observed, decisions)

    def held_back(self, pacer: Pacer) -> dict[str, str]:
        """Why which VMs have to wait."""
        look = pacer.hold_back(self.look())
        return {
            each.vm.name: each.reasons[0]
            for each in look.decisions
            if each.vm.name in self.due and not each.restart
        }

    def _observed(self, config: Config, name: str) -> Observed:
        vm = config.vm(name)
        sealed = Manifest(name, 2, self.digests[name], self.runs[name], DELIVERY, ())
        active = "failed" if name in self.down else "active"
        unit = UnitState(vm.unit, "loaded", active, "", "1" * 32, active_seconds=self.up_for[name])
        wanted = Desired(self.digests[name], (), {}, DELIVERY)
        return Observed(vm, wanted, sealed, unit, None, None, self.attempts.get(name))


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Three VMs, all due for the same change."""
    return World(tmp_path)


def test_nothing_holds_back_by_default(world: World) -> None:
    """Without a word in the configuration what is due is restarted."""
    assert world.held_back(world.pacer(VMS)) == {}


def test_order(world: World) -> None:
    """A VM waits for those it comes after, while these are due or being restarted."""
    pacer = world.pacer('[vms.a]\nafter = ["b"]\n' + VMS.replace("[vms.a]\n", ""))
    assert set(world.held_back(pacer)) == {"a"}
    world.due = {"a"}
    world.attempts = {"b": Attempt("1", Outcome.RESTARTING)}
    assert set(world.held_back(pacer)) == {"a"}
    world.attempts = {"b": Attempt("1", Outcome.FAILED)}
    assert world.held_back(pacer) == {}


def test_what_waits_for_its_turn_is_due(world: World) -> None:
    """Its state says so, and not that something in the configuration holds it."""
    pacer = world.pacer('[vms.a]\nafter = ["b"]\n' + VMS)
    look = pacer.hold_back(world.look())
    assert [each.state for each in look.decisions if each.vm.name == "a"] == [State.RESTART_DUE]


def test_canaries(world: World) -> None:
    """Others wait for a canary of the same change until it has run for long enough; canaries do not."""
    pacer = world.pacer('canaries = ["c"]\ncanary_seconds = 60\n' + VMS)
    assert set(world.held_back(pacer)) == {"a", "b"}
    world.due, world.up_for["c"] = {"a", "b"}, 59.0
    assert set(world.held_back(pacer)) == {"a", "b"}
    world.up_for["c"] = 60.0
    assert world.held_back(pacer) == {}
    world.due, world.runs["a"] = set("abc"), "another"
    assert set(world.held_back(pacer)) == {"b"}


def test_quiet_periods(world: World) -> None:
    """A change within the quiet period begins it anew, up to the maximum; a VM in step forgets."""
    pacer = world.pacer("quiet_seconds = 10\nquiet_max_seconds = 25\n" + VMS)
    for digest in "1234":
        world.digests["a"] = digest
        assert "a" in world.held_back(pacer), digest
        world.now += 6
    world.now += 1
    assert "a" not in world.held_back(pacer), "the maximum"
    world.due = set()
    world.held_back(pacer)
    world.due = {"a"}
    assert set(world.held_back(pacer)) == {"a"}
    world.now += 10
    assert world.held_back(pacer) == {}


def test_rates(world: World) -> None:
    """No more restarts than allowed within any hour since the host's boot, whatever the wall clock says."""
    pacer = world.pacer("restarts_per_hour = 2\n" + VMS)
    vm = world.config.vm("a")
    for _ in range(2):
        assert "a" not in world.held_back(pacer)
        pacer.note_restart(vm)
        world.now += 60
    assert set(world.held_back(pacer)) == {"a"}
    for jump in (-10_000_000.0, 10_000_000.0):
        world.wall += jump
        assert set(world.held_back(pacer)) == {"a"}
    world.now += HOUR - 120
    assert world.held_back(pacer) == {}


def test_rates_after_a_reboot(world: World) -> None:
    """Moments that have not come yet since this boot are another boot's."""
    pacer = world.pacer("restarts_per_hour = 1\n" + VMS)
    pacer.note_restart(world.config.vm("a"))
    assert set(world.held_back(pacer)) == {"a"}
    world.now = 10.0
    assert world.held_back(pacer) == {}


@pytest.mark.parametrize(
    ("windows", "opens_in"),
    [
        ("1999-12-31", None),
        ("2023-11-14 22:00:00 UTC", 0),
        ("2023-11-14 21:13:20 UTC", None),
        ("2023-11-14 21:13:21 UTC", 0),
        ("2023-11-14 22:13:20 UTC", 0),
        ("2023-11-14 22:13:21 UTC", 1),
        ("Sat 02:00 UTC", 272_800),
    ],
)
def test_windows(world: World, windows: str, opens_in: float | None) -> None:
    """A window is open from its start, for so long, end excluded; else the wait is until it opens."""
    # The wall clock shows Tue 2023-11-14 22:13:20 UTC.
    pacer = world.pacer(f'windows = [{{ starts = "{windows}", minutes = 60 }}]\n' + VMS)
    waits = [each.wait_seconds for each in pacer.hold_back(world.look()).decisions if not each.restart]
    if opens_in == 0:
        assert waits == []
    elif opens_in is None:
        assert "never" in world.held_back(pacer)["a"]
    else:
        assert waits == [opens_in] * 3


def test_several_windows(world: World) -> None:
    """Any of them will do."""
    windows = '{ starts = "1999-12-31", minutes = 1 }, { starts = "2023-11-14 22:00:00 UTC", minutes = 20 }'
    assert world.held_back(world.pacer(f"windows = [{windows}]\n" + VMS)) == {}


@pytest.mark.parametrize("event", ["", "Sut 25:00", "--iterations=3", "a\0b", "; reboot"])
def test_what_is_no_calendar_event(event: str) -> None:
    """Is refused with one error, whatever it is."""
    with pytest.raises(ConfigurationError):
        next_elapse(event, 0)


def test_a_switch(world: World) -> None:
    """While its lock is held by somebody all wait, up to the limit; each switch has its own."""
    pacer = world.pacer("switch_seconds = 100\n" + VMS)
    path = world.directory / "switch"
    assert world.held_back(pacer) == {}
    for _ in range(2):
        with path.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            assert set(world.held_back(pacer)) == set("abc")
            world.now += 99
            assert set(world.held_back(pacer)) == set("abc")
            world.now += 1
            assert world.held_back(pacer) == {}
        assert world.held_back(pacer) == {}


def test_a_second_switch_is_waited_for_where_the_first_one_ended_with_nothing_due(world: World) -> None:
    """A switch often restarts VMs itself: that nothing is due at its end takes nothing from the next one."""
    pacer = world.pacer("switch_seconds = 100\n" + VMS)
    path = world.directory / "switch"
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert set(world.held_back(pacer)) == set("abc")
        world.due = set()
        assert world.held_back(pacer) == {}
    assert world.held_back(pacer) == {}
    world.now, world.due = world.now + 4 * HOUR, set("abc")
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert set(world.held_back(pacer)) == set("abc")


def test_a_second_switch_is_waited_for_where_no_look_came_between(world: World) -> None:
    """Another process with the lock is another switch, though nobody has seen the lock free."""
    pacer = world.pacer("switch_seconds = 100\n" + VMS)
    path = world.directory / "switch"
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert set(world.held_back(pacer)) == set("abc")
    world.now += 4 * HOUR
    with subprocess.Popen(
        ["flock", str(path), "sh", "-c", "echo locked; read line"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        assert set(world.held_back(pacer)) == set("abc")
        other.communicate("\n")


def test_what_is_down_waits_for_nothing(world: World) -> None:
    """A VM that a restart of ours has left down is started whatever else holds restarts back."""
    pacer = world.pacer('windows = [{ starts = "1999-12-31", minutes = 1 }]\nquiet_seconds = 60\n' + VMS)
    world.down = {"a"}
    assert set(world.held_back(pacer)) == {"b", "c"}


def test_locks_are_read_and_not_tried(tmp_path: Path) -> None:
    """A file counts as locked by the kernel's list alone; who waits for a lock does not hold it."""
    path = tmp_path / "lock"
    path.touch()
    status = path.stat()
    line = "1: {}FLOCK  ADVISORY  WRITE 1 {:02x}:{:02x}:{} 0 EOF\n"
    major, minor = status.st_dev >> 8, status.st_dev & 0xFF

    def listed(arrow: str, inode: int) -> Path:
        file = tmp_path / "locks"
        file.write_text(line.format(arrow, major, minor, inode))
        return file

    def check(arrow: str, inode: int) -> bool:
        return nixos.is_locked(path, (listed(arrow, inode),))

    assert check("", status.st_ino)
    assert not check("-> ", status.st_ino)
    assert not check("", status.st_ino + 1)
    assert not nixos.is_locked(path, (tmp_path / "nothing",))
    assert not nixos.is_locked(tmp_path / "nothing", (listed("", status.st_ino),))


def test_the_sealed_digest_counts_once(world: World) -> None:
    """What this very look is to seal is what a quiet period is about."""
    pacer = world.pacer("quiet_seconds = 10\n" + VMS)
    look = world.look()
    wanted = look.observed[0].desired
    sealing = tuple(replace(each, seal=wanted) for each in look.decisions)  # type: ignore[arg-type]  # it is a Desired
    pacer.hold_back(replace(look, decisions=sealing))
    world.now += 10
    assert world.held_back(pacer) == {}
