# SPDX-License-Identifier: MIT
"""What holds a due restart back: asked anew each time, by clocks that may jump."""

from __future__ import annotations

import fcntl
import subprocess
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pytest

from credferry.agent.config import calendar
from credferry.agent.config.calendar import next_elapse
from credferry.agent.config.loading import parse
from credferry.agent.errors import ConfigurationError
from credferry.agent.reconcile.decision import Decision, State
from credferry.agent.reconcile.desired import Desired
from credferry.agent.reconcile.observed import Observed
from credferry.agent.reconcile.observer import Look
from credferry.agent.rollout import nixos
from credferry.agent.rollout.clock import Clock
from credferry.agent.rollout.pacing import HOUR, RestartPolicyGate, restart_order
from credferry.agent.sealing.keys import CredentialKey
from credferry.agent.source.published import NOTHING
from credferry.agent.store.generations import Store
from credferry.agent.store.records import Attempt, Outcome, Pushed, Way
from credferry.agent.systemd.units import UnitState
from credferry.launcher.handoff import Channel, Delivery, Manifest

if TYPE_CHECKING:
    from pathlib import Path

    from credferry.agent.config.model import Config

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
    states: dict[str, State] = field(default_factory=dict)
    """Of VMs that are not due; else they are in step."""
    down: set[str] = field(default_factory=set)
    unasked: set[str] = field(default_factory=set)
    """Those of which systemd has said nothing."""
    pushed: dict[str, Pushed] = field(default_factory=dict)
    unsealed: set[str] = field(default_factory=set)
    resealed: set[str] = field(default_factory=set)
    """Those for which this very look seals something."""

    def pacer(self, text: str) -> RestartPolicyGate:
        """A pacer of a configuration."""
        lock = f'[rollout]\nswitch_lock = "{self.directory / "switch"}"\n'
        config = parse((lock + text).encode(), self.directory / "config.toml")
        clock = Clock(lambda: self.now, lambda: self.now, lambda: self.wall)
        self.config = config
        return RestartPolicyGate(config, Store(self.directory / "state", CredentialKey(b"k" * 4096)), clock)

    def look(self) -> Look:
        """One look at all VMs."""
        observed = tuple(self._observed(self.config, name) for name in self.config.vms)
        decisions = tuple(
            Decision(each.vm, State.RESTART_DUE, seal=self._seal(each), way=Way.RESTART)
            if each.vm.name in self.due
            else Decision(each.vm, self.states.get(each.vm.name, State.IN_STEP))
            for each in observed
        )
        return Look(NOTHING, observed, decisions)

    def _seal(self, observed: Observed) -> Desired | None:
        assert isinstance(observed.desired, Desired)
        return observed.desired if observed.vm.name in self.resealed else None

    def waits(self, pacer: RestartPolicyGate) -> dict[str, tuple[State, float]]:
        """Which VMs have to wait, what they are shown as, and when to look again."""
        look = pacer.hold_back(self.look())
        return {
            each.vm.name: (each.state, each.wait_seconds)
            for each in look.decisions
            if each.vm.name in self.due and each.restart is False
        }

    def held_back(self, pacer: RestartPolicyGate) -> dict[str, str]:
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
        sealed_now = None if name in self.unsealed else sealed
        asked = None if name in self.unasked else unit
        observed = Observed(vm, wanted, sealed_now, asked, None, None, self.attempts.get(name))
        return replace(observed, pushed=self.pushed.get(name))


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


@pytest.mark.parametrize(
    ("ago", "left"),
    [(0.0, 60.0), (59.5, 0.5), (60.0, None), (-5.0, 60.0)],
    ids=["now", "almost", "long enough", "of another boot"],
)
def test_a_canary_runs_a_pushed_change_since_its_push(world: World, ago: float, left: float | None) -> None:
    """How long its VM has been up does not count, and a moment that has not come yet counts as now."""
    world.due, world.pushed["c"] = {"a"}, Pushed("1" * 32, "1", 2, moment=world.now - ago)
    waits = world.waits(world.pacer(CANARY + VMS))
    assert waits == ({} if left is None else {"a": (State.WAITING, left)})


def test_a_canary_that_was_started_with_a_change_runs_it_since_its_start(world: World) -> None:
    """A record of pushes without a moment says that the guest has it since its start."""
    world.due, world.pushed["c"], world.up_for["c"] = {"a"}, Pushed("1" * 32, "1", 2), 20.0
    assert world.waits(world.pacer(CANARY + VMS)) == {"a": (State.WAITING, 40.0)}


def test_the_order_of_all_vms_follows_after(world: World) -> None:
    """Each VM comes after those that its `after` names."""
    world.pacer('[vms.a]\nafter = ["b"]\n[vms.b]\nafter = ["c"]\n' + VMS)
    assert restart_order(world.config.vms) == ["c", "b", "a"]


CANARY = 'canaries = ["c"]\ncanary_seconds = 60\n'


def test_what_waits_for_a_canary_is_due(world: World) -> None:
    """The others are due until the canary is restarted, and wait until it has proved itself."""
    pacer = world.pacer(CANARY + VMS)
    assert world.waits(pacer) == {"a": (State.RESTART_DUE, HOUR), "b": (State.RESTART_DUE, HOUR)}
    world.due, world.up_for["c"] = {"a", "b"}, 40.0
    assert world.waits(pacer) == {"a": (State.WAITING, 20.0), "b": (State.WAITING, 20.0)}


@pytest.mark.parametrize(
    ("state", "is_waited_for"),
    [
        (State.CHANGING, True),
        (State.HELD, False),
        (State.IGNORED, False),
        (State.REFUSED, False),
        (State.WAITING, False),
    ],
)
def test_an_interrupted_canary_that_is_held_blocks_nobody(
    world: World, state: State, is_waited_for: bool
) -> None:
    """Others wait while its restart or push goes on, and not for one that somebody has put off."""
    pacer = world.pacer('canaries = ["c"]\n' + VMS)
    world.due -= {"c"}
    world.states["c"] = state
    world.attempts["c"] = Attempt("1", Outcome.RESTARTING, run="run", way=Way.PUSH)
    assert set(world.waits(pacer)) == ({"a", "b"} if is_waited_for else set())


def test_each_canary_of_the_same_change_counts(world: World) -> None:
    """A canary of another change takes nothing from one of the same change that is named after it."""
    pacer = world.pacer('canaries = ["b", "c"]\n' + VMS)
    world.runs["b"] = "another"
    assert set(world.held_back(pacer)) == {"a"}


def test_a_canary_that_systemd_says_nothing_of_has_not_run_yet(world: World) -> None:
    """The others wait for the whole time."""
    pacer = world.pacer(CANARY + VMS)
    world.due, world.unasked = {"a", "b"}, {"c"}
    assert world.waits(pacer) == {"a": (State.WAITING, 60.0), "b": (State.WAITING, 60.0)}


def test_what_one_look_seals_is_one_change(world: World) -> None:
    """Whatever was sealed before, if anything was: the others wait for the canary."""
    pacer = world.pacer(CANARY + VMS)
    world.resealed, world.runs = {"a", "b", "c"}, {"a": "1", "b": "2", "c": "3"}
    assert set(world.held_back(pacer)) == {"a", "b"}
    world.unsealed = {"a", "b", "c"}
    assert set(world.held_back(pacer)) == {"a", "b"}
    world.resealed = set()
    assert set(world.held_back(pacer)) == {"a", "b"}


def test_a_look_that_does_not_fit_together_is_an_error(world: World) -> None:
    """No VM is paced by what another one shows."""
    pacer = world.pacer(VMS)
    look = world.look()
    with pytest.raises(ValueError, match="zip"):
        pacer.hold_back(replace(look, decisions=look.decisions[:-1]))


def test_a_window_that_systemd_understands_no_more_stays_closed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then each VM waits, with systemd's word for it, and it is asked again within the hour."""
    pacer = world.pacer('windows = [{ starts = "Sat 02:00 UTC", minutes = 60 }]\n' + VMS)

    def refuse(*_: object) -> float:
        raise ConfigurationError("not a calendar event", hint="see systemd.time(7)")

    monkeypatch.setattr(calendar, "opens", refuse)
    assert world.waits(pacer) == dict.fromkeys("abc", (State.WAITING, HOUR))
    assert "not a calendar event" in world.held_back(pacer)["a"]


def test_a_quiet_period_ends_to_the_moment(world: World) -> None:
    """Half a second left is waited for; a VM of which nothing is sealed waits like the others."""
    pacer = world.pacer("quiet_seconds = 10\n" + VMS)
    world.unsealed = {"b"}
    assert world.waits(pacer) == dict.fromkeys("abc", (State.WAITING, 10.0))
    world.now += 9.5
    assert world.waits(pacer) == dict.fromkeys("abc", (State.WAITING, 0.5))


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
        pacer.note(vm, Way.RESTART)
        world.now += 60
    assert world.waits(pacer) == {"a": (State.WAITING, HOUR - 120)}
    for jump in (-10_000_000.0, 10_000_000.0):
        world.wall += jump
        assert set(world.held_back(pacer)) == {"a"}
    world.now += HOUR - 120
    assert world.held_back(pacer) == {}


@pytest.mark.parametrize(("is_free", "held"), [(True, {"a"}), (False, {"a", "b"})])
def test_limits_of_pushes(world: World, is_free: bool, held: set[str]) -> None:
    """With `live_windows = false`, restarts still wait for their window, and pushes do not."""
    live = f"live_windows = {str(not is_free).lower()}\n"
    opens = 'windows = [{ starts = "Sat 02:00 UTC", minutes = 60 }]\n'
    pacer = world.pacer(live + opens + VMS)
    look = world.look()
    ways = {"a": Way.RESTART, "b": Way.PUSH, "c": None}
    decisions = tuple(replace(each, way=ways[each.vm.name]) for each in look.decisions)
    after = pacer.hold_back(replace(look, decisions=decisions))
    assert {each.vm.name for each in after.decisions if each.state is State.WAITING} == held


def test_rates_after_a_reboot(world: World) -> None:
    """Moments that have not come yet since this boot are another boot's."""
    pacer = world.pacer("restarts_per_hour = 1\n" + VMS)
    pacer.note(world.config.vm("a"), Way.RESTART)
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
        assert "ever open again" in world.held_back(pacer)["a"]
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


def test_a_switch_is_waited_for_from_when_something_is_due(world: World) -> None:
    """The time in which nothing was due does not count against the limit."""
    pacer = world.pacer("switch_seconds = 100\n" + VMS)
    world.due = set()
    with (world.directory / "switch").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert world.held_back(pacer) == {}
        world.now, world.due = world.now + 100, set("abc")
        assert set(world.held_back(pacer)) == set("abc")


def test_the_clock_of_rates_counts_from_the_host_s_boot() -> None:
    """Sleep included: it is the kernel's own."""
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert before <= Clock().boot() <= time.clock_gettime(time.CLOCK_BOOTTIME)


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
