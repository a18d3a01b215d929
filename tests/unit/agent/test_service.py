# SPDX-License-Identifier: MIT
"""The daemon's loop, turn by turn: what becomes of VMs while keys, disks and operators do as they like."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from credferry.agent.audit import writer as journal
from credferry.agent.audit.events import Event, Order
from credferry.agent.config.loading import load
from credferry.agent.daemon.host_key import HostKey
from credferry.agent.errors import KeyFileError, OrderError
from credferry.agent.reconcile import rekey
from credferry.agent.reconcile.decision import State
from credferry.agent.rollout.operators import Operator
from credferry.agent.sealing.keys import create_key, read_key
from credferry.agent.store import files as durable
from credferry.agent.store import opening
from credferry.agent.store.opening import guest_key_path, open_store
from credferry.agent.store.records import Attempt, Outcome
from credferry.launcher.handoff import Secret
from tests.support.generations import damage
from tests.support.loop import MACHINE_ID, Loop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from credferry.agent.config.model import VmConfig
    from credferry.agent.daemon.cycle import Turn
    from credferry.agent.reconcile.observer import Look, Observer
    from credferry.agent.systemd.units import SystemManager

VM = '[vms.a.credentials]\nX = { secret = "x" }\n'
UNIT = "microvm@a.service"


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Loop]:
    """A service with one VM, which runs what is published."""
    made = Loop(tmp_path, VM)
    made.publish(x="one")
    with made.running():
        in_step(made)
        yield made


def in_step(loop: Loop) -> None:
    """Have what is published sealed, and the VM started on it."""
    loop.turn()
    loop.start_vm("a")
    loop.turn()
    assert loop.decision("a").state is State.IN_STEP


def behind_and_held(loop: Loop) -> None:
    """Have something newer sealed for the VM, which an operator holds."""
    loop.store.hold("a", held=True)
    loop.publish(x="two")
    loop.turn(lambda: loop.decision("a").state is State.HELD)


@pytest.mark.parametrize("how", ["look", "reload"])
def test_a_held_vm_stays_behind_while_the_host_s_key_changes(loop: Loop, how: str) -> None:
    """With a new key, noticed by a look or at a reload, a VM that was behind still is; it is told once."""
    behind_and_held(loop)
    loop.new_key()
    if how == "reload":
        loop.service._reload()
    loop.turn(lambda: loop.decision("a").seal is None)
    assert loop.decision("a").state is State.HELD
    assert loop.events().count(Event.HOST_KEY) == 1
    assert loop.verify() == ()
    loop.store.hold("a", held=False)
    loop.turn(lambda: loop.units.restarts)
    assert loop.decision("a").state is State.IN_STEP
    assert loop.units.restarts == [UNIT]


def test_a_held_vm_stays_behind_while_the_key_changes_and_there_is_no_bus(loop: Loop) -> None:
    """What a VM runs is carried over though systemd cannot be asked just then."""
    behind_and_held(loop)
    loop.service._connection._manager, loop.service._connection._retry_at = None, float("inf")
    loop.new_key()
    loop.turn(lambda: loop.service._session.observer.look(loop.service._session.config.vms.values(), None))
    loop.service._connection._manager = loop.units
    loop.turn()
    assert loop.decision("a").state is State.HELD
    assert loop.units.restarts == []


@pytest.mark.parametrize("failures", [1, 2])
def test_a_vm_is_not_left_down_where_a_unit_that_it_requires_fails(loop: Loop, failures: int) -> None:
    """The restart has stopped the VM, which is no operator's stop: it is started again, or put back."""
    results = iter(["dependency"] * failures)

    def job(unit: str) -> str:
        result = next(results, "done")
        loop.stop_vm("a") if result == "dependency" else loop._restart(unit)
        return result

    loop.units.job = job
    loop.publish(x="two")
    loop.turn(lambda: len(loop.units.restarts) > failures)
    assert loop.units.unit(UNIT).is_active
    in_force = loop.store.current("a")
    assert in_force is not None
    assert in_force.generation == (2 if failures == 1 else 1)


class GoneError(BaseException):
    """The agent's process is gone."""


def ended_unseen(loop: Loop, result: str, seen: int) -> None:
    """Have restarts end with ``dependency``, and the agent end before it sees the last one's result."""
    results = iter(["dependency"] * seen)

    def job(unit: str) -> str:
        loop.stop_vm("a")
        loop.units.ends[unit] = "dependency"
        for last in results:
            return last
        loop.units.ends[unit] = result
        raise GoneError

    loop.units.job = job
    loop.publish(x="two")
    with pytest.raises(GoneError):
        loop.turn(lambda: False)
    loop.units.job = loop._restart


@pytest.mark.parametrize("result", ["dependency", "skipped"])
@pytest.mark.parametrize("seen", [0, 1, 2], ids=["at first", "again", "on the way back"])
def test_a_vm_that_a_restart_left_down_is_started_though_the_agent_ended(
    tmp_path: Path, seen: int, result: str
) -> None:
    """Systemd's own records tell that no operator has stopped the VM."""
    loop = Loop(tmp_path, VM)
    loop.publish(x="one")
    with loop.running():
        in_step(loop)
        ended_unseen(loop, result, seen)
    with loop.running() as service:
        loop.turn(lambda: loop.units.unit(UNIT).is_active)
        current = service._session.store.current("a")
        assert current is not None
        assert current.generation == (1 if seen == 2 else 2)


@pytest.mark.parametrize("result", ["done", "canceled", ""])
def test_a_vm_that_an_operator_stopped_stays_so_though_the_agent_ended(tmp_path: Path, result: str) -> None:
    """So does one of which systemd's records tell nothing."""
    loop = Loop(tmp_path, VM)
    loop.publish(x="one")
    with loop.running():
        in_step(loop)
        ended_unseen(loop, result, 0)
    asked = len(loop.units.restarts)
    with loop.running() as service:
        loop.turn(lambda: service._session.store.attempt("a") is None)
        loop.turn()
        assert loop.decision("a").state is State.STOPPED
        assert len(loop.units.restarts) == asked


def test_what_a_vm_runs_is_kept_while_there_is_no_bus(loop: Loop) -> None:
    """However often secrets change while systemd cannot be asked, a failed VM can go back to what it ran."""
    connection = loop.service._connection
    connection._manager, connection._retry_at = None, float("inf")
    for number in range(5):
        loop.publish(x=f"value {number}")
        loop.turn(lambda: loop.decision_without_bus("a").seal is None)
    connection._manager = loop.units
    assert loop.store.generation("a", 1) is not None


def test_a_vm_stays_behind_while_the_key_changes_and_its_secret_is_lacking(loop: Loop) -> None:
    """What a VM runs is carried over though there is nothing published to compare it with."""
    loop.publish(y="another")
    loop.turn()
    assert loop.decision("a").state is State.REFUSED
    loop.new_key()
    for _ in range(3):
        loop.turn()
    loop.publish(x="two")
    loop.turn(lambda: loop.decision("a").state is State.IN_STEP)
    assert loop.units.restarts == [UNIT]


def test_a_vm_stays_behind_while_the_key_changes_a_secret_is_lacking_and_the_agent_ends(
    tmp_path: Path,
) -> None:
    """What a VM runs is carried over at once, for good: no later agent would have the key before."""
    loop = Loop(tmp_path, VM)
    loop.publish(x="one")
    with loop.running():
        in_step(loop)
        loop.publish(y="another")
        loop.turn()
        loop.new_key()
        loop.turn()
    with loop.running():
        loop.publish(x="two")
        loop.turn(lambda: loop.units.restarts)
        assert loop.decision("a").state is State.IN_STEP


def test_a_vm_that_runs_what_is_published_again_after_a_change_of_the_key_is_not_restarted(
    loop: Loop,
) -> None:
    """What a VM runs is known with another key, too, though the VM was behind at the change."""
    behind_and_held(loop)
    loop.new_key()
    loop.turn()
    assert loop.decision("a").state is State.HELD
    loop.publish(x="one")
    loop.turn()
    loop.store.hold("a", held=False)
    for _ in range(3):
        loop.turn()
    assert loop.decision("a").state is State.IN_STEP
    assert loop.units.restarts == []


def failing(loop: Loop, value: str) -> None:
    """Publish what the VM does not start on, and have it rolled back."""

    def job(unit: str) -> str:
        current = loop.store.current("a")
        assert current is not None
        if loop.store.values("a")["X"] != Secret(value.encode()):
            return loop._restart(unit)
        number = int(loop.units.unit(unit).invocation_id, 16) + 1
        loop.units.set(
            unit, active="failed", sub="failed", result="exit-code", invocation_id=f"{number:032x}"
        )
        return "failed"

    loop.units.job = job
    loop.publish(x=value)
    loop.turn(lambda: Event.ROLLED_BACK in loop.events())


@pytest.mark.parametrize("keys", [1, 2])
def test_a_vm_that_fails_after_a_change_of_the_key_goes_back(loop: Loop, keys: int) -> None:
    """Each generation is sealed anew under its own number, so what the VM ran before still opens."""
    loop.publish(x="two")
    loop.turn(lambda: loop.decision("a").state is State.IN_STEP)
    for _ in range(keys):
        loop.new_key()
        loop.turn()
    failing(loop, "bad")
    assert Event.ROLLBACK_FAILED not in loop.events()
    assert loop.units.unit(UNIT).is_active
    current = loop.store.current("a")
    assert current is not None
    assert current.generation == 2
    assert loop.store.values("a") == {"X": Secret(b"two")}
    assert loop.decision("a").state is State.FAILED


def test_a_vm_whose_key_changed_while_no_agent_ran_goes_back_to_what_was_sealed_anew(tmp_path: Path) -> None:
    """What the VM runs is assumed then, and the generation that was sealed anew holds it."""
    loop = Loop(tmp_path, VM)
    loop.publish(x="one")
    with loop.running():
        in_step(loop)
    loop.new_key()
    with loop.running():
        loop.turn()
        failing(loop, "bad")
        assert Event.ROLLBACK_FAILED not in loop.events()
        assert loop.units.unit(UNIT).is_active


def test_a_vm_whose_generation_was_spoiled_goes_back_to_what_was_sealed_anew(loop: Loop) -> None:
    """The generation that the VM was started on does not open any more; another holds the same."""
    (loop.top / "state/vms/a/generations/1/value.X").unlink()
    loop.turn(lambda: loop.decision("a").seal is None)
    failing(loop, "bad")
    assert Event.ROLLBACK_FAILED not in loop.events()
    assert loop.units.unit(UNIT).is_active


def test_what_did_not_start_is_not_tried_again_with_another_key(loop: Loop) -> None:
    """The same values have another digest then: the VM stays on what it was put back on."""
    failing(loop, "bad")
    asked = len(loop.units.restarts)
    loop.new_key()
    for _ in range(3):
        loop.turn()
    assert loop.decision("a").state is State.FAILED
    assert len(loop.units.restarts) == asked


def test_a_generation_is_not_to_blame_where_the_key_changes_while_its_vm_is_restarted(loop: Loop) -> None:
    """PID 1 could not open it: the VM is started on it once it is sealed with the new key."""
    once, changed = threading.Lock(), threading.Event()

    def job(unit: str) -> str:
        if once.acquire(blocking=False):  # restarts may run at the same time
            loop.new_key()
            changed.set()
        return loop._restart(unit)

    loop.units.job = job
    loop.publish(x="two")
    loop.turn(lambda: changed.is_set() and loop.decision("a").state is State.IN_STEP)
    current = loop.store.current("a")
    assert current is not None
    assert current.generation == 2
    assert not {Event.ROLLED_BACK, Event.ROLLBACK_FAILED} & set(loop.events())


@pytest.mark.parametrize(
    ("before", "again"),
    [(False, False), (False, True), (True, True)],
    ids=["one key", "another key", "the third key and the fourth"],
)
@pytest.mark.parametrize("calls", range(1, 17))
def test_a_full_disk_while_all_is_sealed_anew_loses_nothing(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, calls: int, before: bool, again: bool
) -> None:
    """The agent keeps each earlier key until all is done, wherever it had to stop."""
    behind_and_held(loop)
    if before:
        loop.new_key()
        loop.turn()
    real, left = os.fsync, calls

    def fsync(descriptor: int) -> None:
        nonlocal left
        left -= 1
        if left <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    loop.new_key()
    monkeypatch.setattr(os, "fsync", fsync)
    loop.turn()
    monkeypatch.setattr(os, "fsync", real)
    if again:
        loop.new_key()
    loop.turn(lambda: loop.store.key == open_store(loop.service._session.config).key)
    assert loop.decision("a").state is State.HELD
    store = loop.store
    assert [store.values("a", number) for number in (1, 2)] == [{"X": Secret(b"one")}, {"X": Secret(b"two")}]
    loop.publish(x="one")
    loop.turn()
    loop.store.hold("a", held=False)
    loop.turn()
    assert loop.decision("a").state is State.IN_STEP
    assert loop.units.restarts == []


def test_what_is_sealed_for_the_guest_is_known_with_another_key(tmp_path: Path) -> None:
    """Its digest is that of the value inside, which the guest's key opens."""
    loop = Loop(tmp_path, "[vms.a]\nguest_key = true\n" + VM)
    loop.publish(x="one")
    path = guest_key_path(load(loop.file), "a")
    path.parent.mkdir(parents=True)
    create_key(path, machine_id=MACHINE_ID)
    with loop.running():
        in_step(loop)
        loop.new_key()
        for _ in range(3):
            loop.turn()
        assert loop.decision("a").state is State.IN_STEP
        current = loop.store.current("a")
        assert current is not None
        assert current.generation == 1
        assert loop.units.restarts == []


def test_a_vm_in_step_is_not_restarted_for_a_key_and_a_reload(loop: Loop) -> None:
    """With a new key and the same values, all is sealed anew, and the VM keeps running."""
    loop.new_key()
    loop.service._reload()
    for _ in range(3):
        loop.turn()
    assert loop.decision("a").state is State.IN_STEP
    assert loop.units.restarts == []
    assert loop.verify() == ()


def test_a_key_that_was_just_written_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another key may take its inode within the same tick of the kernel's clock, and so look the same."""
    config = load(Loop(tmp_path, VM).file)
    path, key = Path(config.host_key), HostKey()
    written = path.lstat().st_ctime_ns
    for after_ms, is_other in ((0, True), (15, True), (100, False)):
        monkeypatch.setattr(time, "time_ns", lambda now=written + after_ms * 1_000_000: now)
        key.use(rekey.identity(path))
        assert key.is_other(config) is is_other, after_ms
    path.chmod(0o400)
    assert key.is_other(config)


def test_a_key_that_is_replaced_while_it_is_read_is_noticed(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key's identity is taken before the key is read: a newer file is then seen at the next look."""
    from credferry.agent.daemon import service  # noqa: PLC0415 (only patched here)

    real = opening.open_store

    def replaced(config: object) -> object:
        store = real(config)  # type: ignore[arg-type]  # as it was called
        monkeypatch.setattr(service, "open_store", real)
        loop.new_key()
        return store

    loop.new_key()
    monkeypatch.setattr(service, "open_store", replaced)
    loop.turn(lambda: loop.store.key == real(loop.service._session.config).key)


def test_a_restart_under_way_while_the_key_changes_is_no_tampering(loop: Loop) -> None:
    """What its thread records afterwards is in the chain of the new key."""
    begun, go_on = threading.Event(), threading.Event()

    def job(unit: str) -> str:
        begun.set()
        assert go_on.wait(20)
        return loop._restart(unit)

    loop.units.job = job
    loop.publish(x="two")
    loop.turn()
    loop.turn()
    assert begun.wait(20)
    loop.new_key()
    loop.turn()
    go_on.set()
    loop.turn(lambda: loop.decision("a").state is State.IN_STEP)
    assert loop.events().count(Event.HOST_KEY) == 1
    assert loop.verify() == ()


def test_a_key_that_changed_while_no_agent_ran_is_no_tampering(tmp_path: Path) -> None:
    """The first record with another key says so, whichever process writes it."""
    loop = Loop(tmp_path, VM)
    loop.publish(x="one")
    with loop.running():
        in_step(loop)
    loop.new_key()
    with loop.running():
        loop.turn()
    assert loop.events().count(Event.HOST_KEY) == 1
    assert loop.verify() == ()


def test_an_earlier_key_that_comes_back_is_compared_with_as_ever(tmp_path: Path) -> None:
    """A key that is restored from a backup, while no agent runs: the VM is behind, and is restarted.

    What was noted for the key in between says nothing then.
    """
    loop = Loop(tmp_path, VM)
    loop.publish(x="one")
    with loop.running():
        in_step(loop)
        loop.key.with_name("backup").hardlink_to(loop.key)
        loop.new_key()
        loop.turn()
    loop.key.with_name("backup").rename(loop.key)
    with loop.running():
        loop.turn()
        assert loop.decision("a").state is State.IN_STEP
        loop.publish(x="two")
        loop.turn(lambda: loop.decision("a").state is State.IN_STEP)
    assert loop.units.restarts == [UNIT]


def test_an_edited_head_is_taken_for_no_new_key(loop: Loop) -> None:
    """Only another key of the host is told as one."""
    path = loop.store.state / journal.HEAD_FILE
    path.write_text(path.read_text().replace("sealed", "unsealed"))
    loop.publish(x="two")
    loop.turn(lambda: Event.RESTARTED in loop.events())
    assert Event.HOST_KEY not in loop.events()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EMFILE, errno.EIO])
@pytest.mark.parametrize("with_key", [False, True], ids=["", "with another key"])
def test_a_reload_that_cannot_be_recorded_changes_nothing(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, code: int, *, with_key: bool
) -> None:
    """On a disk that cannot be written, the configuration and the key stay, and the daemon goes on."""
    real = durable.replace_durably
    before = loop.service._session.config

    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    for module in ("credferry.agent.audit.writer", "credferry.agent.store.record_files"):
        monkeypatch.setattr(f"{module}.replace_durably", fail)
    loop.configure(VM + '[vms.b.credentials]\nX = { secret = "x" }\n')
    if with_key:
        loop.new_key()
    loop.service._reload()
    loop.turn()
    assert loop.service._session.config is before
    for module in ("credferry.agent.audit.writer", "credferry.agent.store.record_files"):
        monkeypatch.setattr(f"{module}.replace_durably", real)
    loop.service._reload()
    loop.turn()
    assert set(loop.service._session.config.vms) == {"a", "b"}
    assert loop.decision("a").state is State.IN_STEP
    assert loop.verify() == ()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_daemon_on_a_full_disk_starts_and_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """`Service.run` itself outlives a start, a reload and a stop with a disk that cannot be written."""
    loop = Loop(tmp_path, VM)
    loop.publish(x="one")

    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    for module in ("credferry.agent.audit.writer", "credferry.agent.store.record_files"):
        monkeypatch.setattr(f"{module}.replace_durably", fail)
    turns = 0
    with loop.made() as service:
        real = service._turn

        def turn(before: Turn) -> Turn:
            nonlocal turns
            turns += 1
            if turns in {2, 4}:
                os.kill(os.getpid(), signal.SIGHUP if turns == 2 else signal.SIGTERM)
            return replace(real(before), delay=0.0)

        monkeypatch.setattr(service, "_turn", turn)
        service.run()
    assert turns == 4
    assert loop.sent == []


def test_a_generation_that_is_sealed_is_recorded_though_the_disk_fills_up_just_then(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record of a sealed generation that could not be kept is written as soon as it can be."""
    real, calls = durable.replace_durably, 0

    def fail(path: Path, content: bytes) -> None:
        nonlocal calls
        calls += 1
        if calls > 1:  # the first is that the change is published
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path, content)

    monkeypatch.setattr("credferry.agent.audit.writer.replace_durably", fail)
    loop.publish(x="two")
    loop.turn(lambda: loop.decision("a").seal is None)
    monkeypatch.setattr("credferry.agent.audit.writer.replace_durably", real)
    loop.turn(lambda: Event.RESTARTED in loop.events())
    assert loop.told()[-3] == (Event.SEALED, "a: generation 2 is sealed")
    assert loop.verify() == ()


def stopped(loop: Loop, ended: str, **unit: object) -> None:
    """Publish, and have an operator stop the VM while it is restarted for that; how the job then ends."""

    def job(name: str) -> str:
        loop.stop_vm("a")
        loop.units.set(name, **unit)
        return ended

    loop.units.job = job
    loop.publish(x="two")
    loop.turn(lambda: loop.units.restarts)


@pytest.mark.parametrize("attempts", [1, 3])
@pytest.mark.parametrize(
    ("result", "unit"),
    [
        ("canceled", {}),
        ("done", {"invocation_id": "9" * 32}),
        ("canceled", {"active": "failed", "result": "signal", "invocation_id": "9" * 32}),
    ],
    ids=["before the start", "after the start", "amid the start"],
)
def test_a_vm_that_an_operator_stops_while_it_is_restarted_has_not_failed(
    tmp_path: Path, attempts: int, result: str, unit: dict[str, str]
) -> None:
    """It stays stopped, whichever attempt that was, and its next start gets what is published."""
    loop = Loop(tmp_path, VM)
    loop.configure(VM, f"attempts = {attempts}")
    loop.publish(x="one")
    with loop.running() as service:
        in_step(loop)
        stopped(loop, result, **unit)
        loop.turn(lambda: service._session.store.attempt("a") is None)
        loop.turn()
        assert loop.decision("a").state is State.STOPPED
        current = service._session.store.current("a")
        assert current is not None
        assert current.generation == 2
        assert len(loop.units.restarts) == 1
        assert not {Event.RESTART_FAILED, Event.ROLLED_BACK, Event.ROLLBACK_FAILED} & set(loop.events())
        loop.start_vm("a")
        loop.turn()
        assert loop.decision("a").state is State.IN_STEP


def test_a_vm_that_systemd_does_not_start_has_failed(tmp_path: Path) -> None:
    """A condition of its unit that does not hold is no operator's stop, though it leaves the same state."""
    loop = Loop(tmp_path, VM)
    loop.configure(VM, "attempts = 1")
    loop.publish(x="one")
    with loop.running():
        in_step(loop)
        stopped(loop, "done")
        loop.turn(lambda: Event.ROLLED_BACK in loop.events())
        assert Event.RESTART_FAILED in loop.events()


def test_a_restart_whose_job_is_canceled_is_asked_for_again(loop: Loop) -> None:
    """The VM runs on as it was: that is no failure, and the change still has to arrive."""
    results = iter(["canceled"])

    def job(unit: str) -> str:
        result = next(results, "done")
        if result == "done":
            loop.start_vm("a")
        assert unit == UNIT
        return result

    loop.units.job = job
    loop.publish(x="two")
    loop.turn(lambda: Event.RESTARTED in loop.events())
    assert loop.decision("a").state is State.IN_STEP
    assert Event.RESTART_FAILED not in loop.events()
    assert loop.units.restarts == [UNIT, UNIT]


def test_a_stop_while_a_vm_is_put_back_is_no_failure_of_that(tmp_path: Path) -> None:
    """What did not start is not tried again; the VM stays stopped, on the generation before."""
    loop = Loop(tmp_path, VM)
    loop.configure(VM, "attempts = 1")
    loop.publish(x="one")

    def job(unit: str) -> str:
        if len(loop.units.restarts) == 1:
            loop.units.set(unit, active="failed", result="exit-code", invocation_id="8" * 32)
            return "failed"
        loop.stop_vm("a")
        return "canceled"

    with loop.running() as service:
        in_step(loop)
        loop.units.job = job
        loop.publish(x="two")
        loop.turn(lambda: Event.ROLLED_BACK in loop.events())
        assert Event.ROLLBACK_FAILED not in loop.events()
        current = service._session.store.current("a")
        assert current is not None
        assert current.generation == 1
        assert len(loop.units.restarts) == 2


@pytest.mark.parametrize("result", ["failed", "canceled"])
def test_a_vm_that_is_stopped_while_its_health_is_checked_is_not_sick(tmp_path: Path, result: str) -> None:
    """A check that fails, as its VM was stopped meanwhile, is no reason to roll the VM back."""
    loop = Loop(tmp_path, '[vms.a]\nhealth = ["/bin/true"]\n' + VM)
    loop.configure('[vms.a]\nhealth = ["/bin/true"]\n' + VM, "attempts = 1")
    loop.publish(x="one")

    def check(_name: str) -> str:
        loop.stop_vm("a")
        return result

    with loop.running() as service:
        in_step(loop)
        loop.units.health = check
        loop.publish(x="two")
        loop.turn(lambda: loop.units.restarts)
        loop.turn(lambda: service._session.store.attempt("a") is None)
        assert loop.decision("a").state is State.STOPPED
        assert not {Event.RESTART_FAILED, Event.ROLLED_BACK} & set(loop.events())


def test_what_a_vm_runs_is_told_though_something_newer_is_sealed(loop: Loop) -> None:
    """A restart that ended while no agent ran is recorded with the generation that the VM was started on."""
    loop.store.hold("a", held=True)
    loop.publish(x="two")
    loop.turn(lambda: loop.decision("a").state is State.HELD)
    manifest = loop.store.current("a")
    assert manifest is not None
    attempt = Attempt(manifest.digest, Outcome.RESTARTING, previous=1, run=manifest.run, before="0" * 32)
    loop.store.record_attempt("a", attempt)
    loop.start_vm("a")
    loop.publish(x="three")
    config = loop.service._session.config
    look = loop.service._session.observer.look(config.vms.values(), None)
    assert loop.service._session.sealer.seal_due(look) == ["a"]  # as credferry-seal.service does
    loop.turn(lambda: loop.store.attempt("a") is None)
    assert (Event.RESTARTED, "a: runs generation 2") in loop.told()


def test_a_vm_that_came_up_on_something_newer_is_told_to_run_that(loop: Loop) -> None:
    """The record of a restart names the generation that the VM runs, not the one that was sealed before."""

    def job(unit: str) -> str:
        loop.publish(x="three")
        config = loop.service._session.config
        loop.service._session.sealer.seal_due(loop.service._session.observer.look(config.vms.values(), None))
        return loop._restart(unit)

    loop.units.job = job
    loop.publish(x="two")
    loop.turn(lambda: Event.RESTARTED in loop.events())
    told = next(text for event, text in loop.told() if event is Event.RESTARTED)
    # The loop may have sealed the same beside the job, before or after it.
    vm, unit = loop.service._session.config.vm("a"), loop.units.unit(UNIT)
    evidence = loop.service._session.observer.starts.evidence(vm, unit)
    assert evidence is not None
    assert evidence.generation >= 3
    assert told.startswith(f"a: runs generation {evidence.generation},")


def assert_left_running(loop: Loop, *naming: str) -> None:
    """The VM is due and is left running: refused, with the remedy, and one record however many looks."""
    for _ in range(5):
        loop.turn()
    decision = loop.decision("a")
    assert decision.state is State.REFUSED, decision
    for each in naming:
        assert each in decision.reasons[0]
    assert loop.units.restarts == []
    assert loop.units.unit(UNIT).is_active
    assert [event for event in loop.events() if event is Event.REFUSED] == [Event.REFUSED]
    assert 0 < loop.turned.delay <= 5, "it is looked at again soon"


def assert_restarted_once_mended(loop: Loop) -> None:
    """Nothing more than mending it is needed."""
    loop.turn(lambda: loop.decision("a").state is State.IN_STEP)
    assert loop.units.restarts == [UNIT]
    assert Event.REFUSAL_OVER in loop.events()


@pytest.mark.parametrize("mode", [0o600, 0o000, 0o440])
def test_a_key_of_the_wrong_mode_keeps_vms_running(loop: Loop, mode: int) -> None:
    """What systemd would not take is noticed before a restart, and the restart comes once it is mended."""
    loop.key.chmod(mode)
    loop.publish(x="two")
    assert_left_running(loop, "0400", f"chmod 0400 {loop.key}")
    assert "key" in loop.service._conditions.keys
    loop.key.chmod(0o400)
    assert_restarted_once_mended(loop)
    assert "key" not in loop.service._conditions.keys


def test_a_key_with_a_second_link_or_of_another_machine_keeps_vms_running(loop: Loop) -> None:
    """Systemd refuses the one and deletes the other."""
    other = loop.key.with_name("other")
    other.hardlink_to(loop.key)
    loop.publish(x="two")
    assert_left_running(loop, "one link")
    other.unlink()
    content = loop.key.read_bytes()
    loop.key.chmod(0o600)
    loop.key.write_bytes(bytes(16) + content[16:])
    loop.key.chmod(0o400)
    for _ in range(3):
        loop.turn()
    assert "another machine" in loop.decision("a").reasons[0]
    assert loop.units.restarts == []
    loop.key.chmod(0o600)
    loop.key.write_bytes(content)
    loop.key.chmod(0o400)
    assert_restarted_once_mended(loop)


def test_a_key_of_another_user_is_refused(loop: Loop) -> None:
    """Whoever owns the key can read and replace it."""
    with pytest.raises(KeyFileError, match=f"uid {os.geteuid()}, which can read and replace it"):
        read_key(loop.key, machine_id=None, owners={os.geteuid() + 1})


def test_a_unit_that_lacks_the_drop_in_keeps_its_vm_running(loop: Loop) -> None:
    """The unit as systemd has loaded it has to name the VM's own generation."""
    place = f"{loop.top}/state/vms/a/current"
    for credentials in ((), (("credferry", f"{loop.top}/state/vms/b/current"),), (("another", place),)):
        loop.units.set(UNIT, credentials=credentials)
        if loop.decision("a").state is State.IN_STEP:
            loop.publish(x="two")
        assert_left_running(loop, UNIT, f"does not load {place}", "credferry doctor")
    loop.units.set(UNIT, credentials=(("another", "/x"), ("credferry", f"{loop.top}/state/vms/a//current")))
    assert_restarted_once_mended(loop)


def test_a_unit_that_names_the_state_directory_by_a_link_is_as_good(loop: Loop) -> None:
    """What counts is where the path leads."""
    (loop.top / "link").symlink_to("state")
    loop.units.set(UNIT, credentials=(("credferry", f"{loop.top}/link/vms/a/current"),))
    loop.publish(x="two")
    loop.turn(lambda: loop.units.restarts)
    assert loop.decision("a").state is State.IN_STEP


def test_a_unit_that_systemd_has_not_read_again_keeps_its_vm_running(loop: Loop) -> None:
    """A start would go by what was in the unit's files before."""
    loop.units.set(UNIT, needs_reload=True)
    loop.publish(x="two")
    assert_left_running(loop, UNIT, "systemctl daemon-reload")
    loop.units.set(UNIT, needs_reload=False)
    assert_restarted_once_mended(loop)


def test_what_stops_a_start_right_before_it_is_noticed(loop: Loop) -> None:
    """It is asked again in the thread that restarts: what a look has seen may be over."""
    real = loop.service._session.observer.look_in_full
    asked: list[str] = []

    def look_in_full(vm: VmConfig, manager: SystemManager) -> Look:
        if not asked:
            loop.key.chmod(0o600)
        asked.append(vm.name)
        return real(vm, manager)

    object.__setattr__(
        loop.service._session.rollout, "observer", _With(loop.service._session.observer, look_in_full)
    )
    loop.publish(x="two")
    loop.turn(lambda: asked)
    assert_left_running(loop, "0400")
    loop.key.chmod(0o400)
    assert_restarted_once_mended(loop)


class _With:
    """An observer with another `Observer.look_in_full`, as that is frozen."""

    def __init__(self, observer: Observer, look_in_full: Callable[..., Look]) -> None:
        self._observer = observer
        self.look_in_full = look_in_full

    def __getattr__(self, name: str) -> object:
        return getattr(self._observer, name)


@pytest.mark.parametrize("how", ["cut short", "of another generation", "removed"])
def test_a_generation_that_does_not_open_is_sealed_anew_before_a_restart(loop: Loop, how: str) -> None:
    """The VM is restarted onto a generation that opens, and never into one that does not."""
    behind_and_held(loop)
    value = loop.top / "state/vms/a/current/value.X"
    if how == "cut short":
        value.write_bytes(value.read_bytes()[:40])
    elif how == "removed":
        value.unlink()
    else:
        value.write_bytes((loop.top / "state/vms/a/generations/1/value.X").read_bytes())
    loop.store.hold("a", held=False)
    loop.turn(lambda: loop.decision("a").state is State.IN_STEP)
    assert loop.units.restarts == [UNIT]
    current = loop.store.current("a")
    assert current is not None
    assert current.generation == 3
    assert Event.RESTART_FAILED not in loop.events()


def test_a_vm_that_is_down_is_tried_whatever_is_in_the_way(tmp_path: Path) -> None:
    """There is nothing to lose: a start that works is worth the try."""
    loop = Loop(tmp_path, VM)
    loop.configure(VM, "attempts = 1")
    loop.publish(x="one")

    def job(unit: str) -> str:
        loop.units.set(unit, active="failed", result="exit-code", invocation_id="8" * 32, needs_reload=True)
        return "failed"

    with loop.running():
        in_step(loop)
        loop.units.job = job
        loop.publish(x="two")
        loop.turn(lambda: Event.ROLLBACK_FAILED in loop.events())
        assert len(loop.units.restarts) == 2
        loop.units.job = loop._restart
        loop.publish(x="three")
        loop.turn(lambda: loop.decision("a").state is State.IN_STEP)


def test_a_vm_that_is_sick_is_put_back_only_where_it_would_start(tmp_path: Path) -> None:
    """It is up, though not healthy: it is left so, and put back once it can be."""
    loop = Loop(tmp_path, VM)
    loop.configure('[vms.a]\nhealth = ["/bin/true"]\n' + VM, "attempts = 1")
    loop.publish(x="one")

    def check(_name: str) -> str:
        loop.key.chmod(0o600)
        return "failed"

    with loop.running() as service:
        in_step(loop)
        loop.units.health = check
        loop.publish(x="two")
        loop.turn(lambda: Event.RESTART_FAILED in loop.events())
        for _ in range(3):
            loop.turn()
        assert loop.units.restarts == [UNIT]
        assert loop.decision("a").state is State.REFUSED
        loop.key.chmod(0o400)
        loop.turn(lambda: Event.ROLLED_BACK in loop.events())
        assert loop.units.restarts == [UNIT, UNIT]
        attempt = service._session.store.attempt("a")
        assert attempt is not None
        assert attempt.outcome is Outcome.ROLLED_BACK


@pytest.mark.parametrize("order", [Order.ROTATE, Order.ROLL_BACK])
def test_an_order_restarts_no_vm_that_would_not_start_again(loop: Loop, order: Order) -> None:
    """The operator hears what is in the way; the VM keeps running, and nothing is noted."""
    loop.publish(x="two")
    loop.turn(lambda: Event.RESTARTED in loop.events())
    loop.key.chmod(0o600)
    loop.service._orders.give("a", order, Operator.of_user(0, ""))
    loop.turn(lambda: loop.service._orders.result("a"))
    assert "would not start again" in loop.service._orders.result("a")
    assert "chmod 0400" in loop.service._orders.result("a")
    assert loop.units.restarts == [UNIT]
    assert loop.store.attempt("a") is None


def test_an_order_does_not_go_back_to_what_does_not_open(loop: Loop) -> None:
    """The operator hears so at once. What the VM's next start gets stays what it runs."""
    loop.publish(x="two")
    loop.turn(lambda: Event.RESTARTED in loop.events())
    damage(loop.top / "state/vms/a/generations/1/value.X")
    with pytest.raises(OrderError, match="generation 1, the one before, cannot be opened"):
        loop.service._orders.give("a", Order.ROLL_BACK, Operator.of_user(0, ""))
    loop.turn()
    assert loop.store.current_number("a") == 2
    assert loop.units.restarts == [UNIT]
    assert loop.store.attempt("a") is None


def test_a_vm_is_not_put_back_onto_what_does_not_open(tmp_path: Path) -> None:
    """Its restart failed, and what it ran before was damaged meanwhile: no start is tried onto that."""
    loop = Loop(tmp_path, VM)
    loop.configure(VM, "attempts = 1")
    loop.publish(x="one")

    def job(_unit: str) -> str:
        damage(loop.top / "state/vms/a/generations/1/value.X")
        return loop.fail_vm("a")

    with loop.running() as service:
        in_step(loop)
        loop.units.job = job
        loop.publish(x="two")
        loop.turn(lambda: Event.ROLLBACK_FAILED in loop.events())
        loop.turn()
        assert loop.units.restarts == [UNIT]
        assert service._session.store.current_number("a") == 2
        assert (Event.ROLLBACK_FAILED, "a: the previous generation, 1, cannot be opened") in loop.told()


def test_others_wait_for_a_canary_that_would_not_start_again(tmp_path: Path) -> None:
    """A change that its canary has not run yet is no further than that."""
    vms = VM + '[vms.b.credentials]\nX = { secret = "x" }\n'
    loop = Loop(tmp_path, vms)
    loop.configure(vms, 'canaries = ["a"]')
    loop.publish(x="one")
    with loop.running():
        loop.turn()
        for vm in "ab":
            loop.start_vm(vm)
        loop.turn()
        loop.units.set(UNIT, needs_reload=True)
        loop.publish(x="two")
        for _ in range(5):
            loop.turn()
        assert loop.units.restarts == []
        loop.units.set(UNIT, needs_reload=False)
        loop.turn(lambda: len(loop.units.restarts) == 2)
        assert loop.units.restarts[0] == UNIT
