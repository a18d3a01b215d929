# SPDX-License-Identifier: MIT
"""Which generations go when, in the daemon's own loop: VMs roll back, restarts last, agents crash."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import replace
from functools import partial
from types import MethodType
from typing import TYPE_CHECKING

import pytest
from msgspec import structs

from credferry.agent.audit.events import Event
from credferry.agent.config.loading import load
from credferry.agent.daemon.once import seal_once
from credferry.agent.reconcile.decision import State
from credferry.agent.reconcile.pruning import _MOST
from credferry.agent.store.locks import rollout_lock
from credferry.agent.store.record_files import WORKED_MAX
from credferry.agent.store.records import Assumed, Attempt, Outcome, Pushed
from credferry.agent.store.retention import KEEP
from credferry.launcher.handoff import EVIDENCE_PARENT, Secret, evidence_name
from tests.support.generations import failing_listing
from tests.support.loop import ONE_UNIT, ONE_VM, Loop, one_vm

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from credferry.agent.reconcile.observer import Look


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Loop]:
    """A service with one VM."""
    with one_vm(tmp_path) as made:
        yield made


def numbers(loop: Loop) -> list[int]:
    """The generations of the VM that are there."""
    return sorted(loop.store.numbers("a"))


def look(loop: Loop) -> Look:
    """A look at the VM."""
    config = loop.service._session.config
    return loop.service._session.observer.look_or_refuse(config.vms.values(), loop.units)


def add(loop: Loop, *, to: int) -> None:
    """Have the VM get more generations than the agent knows of, as those that a crash leaves."""
    store = loop.store
    now = store.current("a")
    assert now is not None
    for number in range(now.generation + 1, to + 1):
        store.write(now.but(generation=number, key=""), {"X": Secret(b"one")}, None)
    loop.service._session.sealer._pruning.note_sealed("a")


def fail_on(loop: Loop, *generations: int) -> threading.Event:
    """Have the VM start on no generation of these. Returns what tells of a start on another one."""
    started = threading.Event()

    def job(_unit: str) -> str:
        if loop.store.current_number("a") in generations:
            return loop.fail_vm("a")
        loop.start_vm("a")
        started.set()
        return "done"

    loop.units.job = job
    return started


def test_a_number_is_never_used_again(loop: Loop) -> None:
    """The generation that failed stays until newer ones exist, so the next one has another number."""
    is_back = fail_on(loop, 2)
    loop.publish(x="two")
    loop.turn()  # the look at all VMs after this change is still owed, and prunes
    assert is_back.wait(20)
    with loop.store.lock(rollout_lock("a")):  # the worker has done its work
        assert Event.ROLLED_BACK in loop.events()
    loop.turn()
    assert loop.store.current_number("a") == 1
    assert numbers(loop) == [1, 2]
    loop.publish(x="three")
    loop.turn(lambda: loop.decision("a").state is State.IN_STEP)
    sealed = [said for event, said in loop.told() if event is Event.SEALED]
    assert sealed == [f"a: generation {number} is sealed" for number in (1, 2, 3)]


@pytest.mark.parametrize("failures", [1, 3])
def test_the_last_that_worked_stays_whatever_failed_since(loop: Loop, failures: int) -> None:
    """Changes fail one after the other, and one works: the generation from before them is still there."""
    bad = range(2, 2 + failures)
    fail_on(loop, *bad)
    for number in bad:
        loop.publish(x=f"bad {number}")
        loop.turn(lambda number=number: loop.events().count(Event.ROLLED_BACK) == number - 1)  # type: ignore[misc]  # a default binds it
        with loop.store.lock(rollout_lock("a")):  # the worker has done its work
            pass
        loop.turn()
    loop.publish(x="good again")
    loop.turn(lambda: loop.decision("a").state is State.IN_STEP)
    loop.turn()
    assert {1, 2 + failures} <= set(numbers(loop))


def test_a_number_is_not_used_again_though_its_generation_was_removed(loop: Loop) -> None:
    """An operator removed the current generation by hand: its number is known from the link."""
    add(loop, to=4)
    (loop.top / "state/vms/a/generations/4").rename(loop.top / "gone")
    assert loop.store.next_number("a") == 5


def test_the_way_back_stays_while_an_ordered_rollback_is_under_way(loop: Loop) -> None:
    """The VM ran 2, is ordered back to 1, and 1 does not start: it goes back to 2, whatever looks do."""
    on_two, on_one, looked = threading.Event(), threading.Event(), threading.Event()

    def job(_unit: str) -> str:
        if loop.store.current_number("a") == 1:
            on_one.set()
            assert looked.wait(20)
            return loop.fail_vm("a")
        loop.start_vm("a")
        on_two.set()
        return "done"

    loop.units.job = job
    loop.publish(x="two")
    loop.turn()  # the look at all VMs after this change is still owed, and prunes
    assert on_two.wait(20)
    rollout = loop.service._session.rollout  # it waits for the VM's lock, so for the end of the restart
    worker = threading.Thread(target=rollout.roll_back, args=("a", loop.units, "r" * 32))
    worker.start()
    assert on_one.wait(20)
    loop.turn()
    looked.set()
    worker.join()
    assert numbers(loop) == [1, 2]
    assert loop.store.current_number("a") == 2
    assert loop.units.unit(ONE_UNIT).is_active


def test_generations_that_failed_do_not_fill_the_store(loop: Loop) -> None:
    """Each change fails and is rolled back: the newest of them stay, beside what the VM runs."""
    fail_on(loop, *range(2, 12))
    for number in range(2, 12):
        loop.publish(x=str(number))
        loop.turn()
        loop.turn(lambda: loop.events().count(Event.ROLLED_BACK) == number - 1)  # noqa: B023 (used at once)
    loop.turn()
    assert numbers(loop) == [1, 9, 10, 11]


@pytest.mark.parametrize("which", ["previous", "ran"])
def test_what_a_rollback_needs_is_read_again_when_others_are_removed(loop: Loop, which: str) -> None:
    """What was observed before is old: the record of a restart that was written since counts."""
    add(loop, to=8)
    before = look(loop)
    with loop.store.lock(rollout_lock("a")):
        attempt = loop_attempt(loop, **{which: 3})
        loop.store.record_attempt("a", attempt)
        loop.service._session.sealer.prune(before)
        assert numbers(loop) == list(range(1, 9)), "a worker is at the VM"
    loop.service._session.sealer.prune(before)
    assert numbers(loop) == [1, 3, 6, 7, 8]


def loop_attempt(loop: Loop, **fields: int) -> Attempt:
    """A failed restart of the VM onto what is current."""
    manifest = loop.store.current("a")
    assert manifest is not None
    return structs.replace(Attempt(manifest.digest, Outcome.FAILED), **fields)


def test_what_a_vm_has_been_started_on_since_the_look_stays(loop: Loop) -> None:
    """Root's evidence of a later start than the one that the look saw is read again."""
    add(loop, to=8)
    before = look(loop)
    started = loop.store.generation("a", 4)
    assert started is not None
    evidence = loop.top / "run" / EVIDENCE_PARENT
    for each in evidence.iterdir():
        each.unlink()
    (evidence / evidence_name("a", "5" * 32)).write_bytes(started.to_bytes())
    loop.service._session.sealer.prune(before)
    assert numbers(loop) == [1, 4, 6, 7, 8]


def test_what_a_vm_has_been_pushed_since_the_look_stays(loop: Loop) -> None:
    """The record of a push to what runs is read again; that of an earlier start counts for nothing."""
    add(loop, to=8)
    before, store = look(loop), loop.store
    assert before.observed[0].unit is not None
    now = before.observed[0].unit.invocation_id
    pushed = store.generation("a", 4)
    assert pushed is not None
    for invocation, stay in ((now, [1, 4, 6, 7, 8]), ("5" * 32, [1, 6, 7, 8])):
        store.record_pushed("a", Pushed(invocation, pushed.digest, 4))
        loop.service._session.sealer._pruning.note_sealed("a")
        loop.service._session.sealer.prune(before)
        assert numbers(loop) == stay


def test_nothing_is_removed_while_it_is_not_known_what_a_vm_runs(loop: Loop) -> None:
    """Without systemd's word all stay, up to a bound, and they go once there is one."""
    add(loop, to=8)
    seen = look(loop)
    blind = replace(seen, observed=tuple(replace(each, unit=None) for each in seen.observed))
    loop.service._session.sealer.prune(blind)
    assert numbers(loop) == list(range(1, 9))
    loop.service._session.sealer.prune(seen)
    assert numbers(loop) == [1, 6, 7, 8]


def test_a_vm_whose_generations_cannot_be_listed_holds_no_look_up(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it is removed or sealed then, and a later look does both, under a number of its own."""
    add(loop, to=8)
    failing_listing(monkeypatch, "a")
    loop.turn()
    assert loop.turned.failure is None
    loop.publish(x="two")
    loop.turn()
    assert loop.turned.failure is None
    assert loop.units.restarts == []
    monkeypatch.undo()
    loop.turn(lambda: loop.decision("a").state is State.IN_STEP and 9 in numbers(loop))
    loop.turn()
    assert numbers(loop) == [1, 7, 8, 9]


def test_above_a_bound_what_nothing_names_is_removed_without_systemd_s_word(loop: Loop) -> None:
    """What a record or root's evidence names stays, and all stay where the evidence does not tell."""
    add(loop, to=KEEP + _MOST + 1)
    store, seen = loop.store, look(loop)
    started = store.generation("a", 6)
    assert started is not None
    store.assume("a", Assumed("5" * 32, started.digest, 4))
    store.record_attempt("a", loop_attempt(loop, previous=5))
    store.record_pushed("a", Pushed("6" * 32, started.digest, 7))
    evidence = loop.top / "run" / EVIDENCE_PARENT
    (evidence / evidence_name("a", "5" * 32)).write_bytes(started.to_bytes())
    blind = replace(seen, observed=tuple(replace(each, unit=None, evidence=None) for each in seen.observed))
    loop.service._session.sealer.prune(blind)
    assert numbers(loop) == list(range(1, KEEP + _MOST + 2)), "there is evidence of two starts"
    for each in evidence.iterdir():
        if "5" * 32 not in each.name:
            each.unlink()
    with store.lock(rollout_lock("a")):
        loop.service._session.sealer.prune(blind)
        assert numbers(loop) == list(range(1, KEEP + _MOST + 2)), "it is being restarted"
    loop.service._session.sealer.prune(blind)
    assert numbers(loop) == [1, 4, 5, 6, 7, 18, 19, 20]


def test_what_another_process_seals_does_not_fill_the_store(loop: Loop) -> None:
    """The agent removes what is too much, though it has sealed nothing itself."""
    loop.store.hold("a", held=True)
    loop.turn()
    for number in range(10):
        loop.publish(x=str(number))
        seal_once(load(loop.file))
        loop.turn()
    assert numbers(loop) == [1, 9, 10, 11]


def test_sealing_alone_does_not_fill_the_store(tmp_path: Path) -> None:
    """Where no agent runs, what seals removes what is too much."""
    made = Loop(tmp_path, ONE_VM)
    most = 0
    with made.made():
        for number in range(2 * _MOST):
            made.publish(x=str(number))
            seal_once(load(made.file))
            found = [int(each.name) for each in (made.top / "state/vms/a/generations").iterdir()]
            most = max(most, len(found))
    assert most == KEEP + _MOST
    assert sorted(found)[-KEEP:] == [30, 31, 32]


def test_many_generations_do_not_keep_a_change_from_being_sealed(loop: Loop) -> None:
    """What is too much and not needed goes first, and the change is sealed in the same look."""
    add(loop, to=KEEP + _MOST + 5)
    loop.publish(x="two")
    loop.turn()
    assert loop.store.current_number("a") == KEEP + _MOST + 6


def test_a_source_that_comes_and_goes_does_not_fill_the_store(loop: Loop) -> None:
    """A producer publishes, and takes all away before the look at all VMs, again and again."""
    for number in range(30):
        loop.publish(x=str(number))
        loop.turn()
        (loop.top / "secrets").unlink()
        loop.turn(lambda: True)
        assert len(numbers(loop)) <= KEEP + WORKED_MAX
    assert loop.store.current_number("a") == 31


def test_no_more_is_sealed_than_a_bound_while_a_restart_lasts(loop: Loop) -> None:
    """A restart may need what nothing names yet, so older generations stay. What is published waits then."""
    loop.store.hold("a", held=True)
    with loop.store.lock(rollout_lock("a")):
        for number in range(_MOST + 5):
            loop.publish(x=str(number))
            loop.turn()
            loop.turn()
        assert numbers(loop) == list(range(1, KEEP + _MOST + 1))
    loop.turn(lambda: loop.decision("a").seal is None)  # removes what is too much, and then seals
    loop.turn()
    assert numbers(loop) == [1, *range(KEEP + _MOST - 1, KEEP + _MOST + 2)]


@pytest.mark.parametrize("how", ["reload", "start"])
def test_what_a_crash_left_goes_with_the_first_look(loop: Loop, how: str) -> None:
    """An agent that ended before it removed older generations does so at its next start, or at a reload."""
    add(loop, to=9)
    loop.store.revert("a", 9)
    if how == "reload":
        loop.service._reload()
        loop.turn()
    else:
        loop.service._restarts.stop()
        with loop.running():
            loop.turn()
            loop.turn()
    assert numbers(loop) == [1, 7, 8, 9]


def test_a_steady_look_reads_no_directory_of_generations(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has been examined once is examined again only after a sealing, though more stay than usual."""
    add(loop, to=8)
    loop.turn()
    assert len(numbers(loop)) == KEEP + 1
    read: list[str] = []
    monkeypatch.setattr("credferry.agent.store.generations.generation_numbers", read.append)
    loop.turn()
    loop.turn()
    assert read == []


def sizes(found: object, path: str, seen: dict[int, object], into: dict[str, int]) -> None:
    """How many entries each collection has that can be reached from an object of the agent, by path."""
    if id(found) in seen:
        return
    seen[id(found)] = found
    children: list[tuple[str, object]] = []
    if isinstance(found, (dict, list, set, frozenset, tuple, deque)):
        into[path] = into.get(path, 0) + len(found)
        children = [(f"{path}[]", each) for each in (found.values() if isinstance(found, dict) else found)]
    elif type(found).__module__.startswith("credferry."):
        slots = {name for kind in type(found).__mro__ for name in getattr(kind, "__slots__", ())}
        names = slots | set(getattr(found, "__dict__", ()))
        children = [(f"{path}.{name}", getattr(found, name, None)) for name in sorted(names)]
    elif isinstance(found, MethodType):
        children = [(f"{path}.__self__", found.__self__)]
    elif isinstance(found, partial):
        children = [(f"{path}.func", found.func), (f"{path}.args", found.args)]
    for name, child in children:
        sizes(child, name, seen, into)


def test_no_memory_is_kept_for_a_rotation(loop: Loop) -> None:
    """After many rotations the agent keeps as much in memory as after a few, in each of its collections."""
    found: list[dict[str, int]] = []
    for number in range(1, 31):
        loop.publish(x=str(number))
        loop.turn(lambda: loop.decision("a").state is State.IN_STEP)
        loop.turn()
        if number % 10 == 0:
            found.append({})
            sizes(loop.service, "service", {}, found[-1])
    few, _, many = found
    assert {path: (few.get(path, 0), size) for path, size in many.items() if size > few.get(path, 0)} == {}
    assert any(path.endswith("store.known._digests") for path in many)
