# SPDX-License-Identifier: MIT
"""A fault of one VM that lasts: the daemon's real loop goes on with the other VMs, and does not spin."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest

from credferry.agent.audit.events import Order
from credferry.agent.errors import StoreError
from credferry.agent.reconcile.decision import State
from credferry.agent.rollout.operators import Operator
from credferry.agent.rollout.rollout import Rollout
from credferry.agent.rollout.workers import RestartPool
from credferry.agent.store.generations import Store
from credferry.agent.store.opening import open_store
from credferry.agent.store.records import Attempt, Outcome
from credferry.launcher.handoff import Secret
from tests.support.generations import failing_listing, failing_sync, refusing_renewal, refusing_writes
from tests.support.loop import Loop

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from credferry.agent.systemd.units import SystemManager

VMS = """
[vms.a.credentials]
X = { secret = "x" }
[vms.b.credentials]
Y = { secret = "y" }
"""
HEALTH = '[vms.a]\nhealth = ["true"]\n'
A, B = "microvm@a.service", "microvm@b.service"


@pytest.fixture(params=[""], ids=["plain"])
def loop(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Loop]:
    """Two VMs in step; the first one has the lines of the parameter."""
    made = Loop(tmp_path, request.param + VMS)
    made.configure(request.param + VMS, "attempts = 1")
    made.publish(x="one", y="one")
    with made.running():
        made.turn()
        made.start_vm("a")
        made.start_vm("b")
        made.turn(lambda: all(made.decision(vm).state is State.IN_STEP for vm in "ab"))
        yield made


def test_another_host_key_reaches_the_other_vms(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """One VM's generations cannot be listed when the host's key changes: the others are sealed with it."""
    failing_listing(monkeypatch, "a")
    loop.new_key()
    loop.publish(x="one", y="two")
    loop.turn(lambda: B in loop.units.restarts)


def test_what_cannot_be_listed_for_a_moment_keeps_its_generations_with_another_key(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host's key changes just then: later the agent still opens, runs and rolls back to what it had."""
    loop.publish(x="two", y="one")
    loop.turn(lambda: loop.decision("a").state is State.IN_STEP)
    loop.units.restarts.clear()
    (loop.top / "secrets").unlink()  # nothing can be sealed anew from it
    with monkeypatch.context() as patched:
        failing_listing(patched, "a")
        loop.new_key()
        loop.turn(lambda: loop.store.key == open_store(loop.service._session.config).key)
    store = loop.store
    assert store.generation("a", 1) is None
    loop.turn(lambda: store.generation("a", 1))
    assert [store.values("a", number) for number in (1, 2)] == [{"X": Secret(b"one")}, {"X": Secret(b"two")}]
    loop.publish(x="two", y="one")
    loop.turn()
    loop.turn(lambda: loop.decision("a").state is State.IN_STEP)
    assert loop.units.restarts == []


def test_another_host_key_that_one_directory_does_not_take_reaches_the_other_vms(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One VM's files cannot be sealed anew: the others go on, and that VM keeps what it has."""
    with monkeypatch.context() as patched:
        refusing_writes(patched, "a")
        loop.new_key()
        loop.publish(x="one", y="two")
        loop.turn(lambda: B in loop.units.restarts)
    store = loop.store
    loop.turn(lambda: store.generation("a", 1) and loop.decision("a").state is State.IN_STEP)
    assert store.numbers("a") == [1]
    assert A not in loop.units.restarts


def test_a_rollback_waits_until_its_generation_is_sealed_with_another_host_key(
    loop: Loop,
) -> None:
    """A VM is down when the key changes, and cannot be sealed anew yet: it is rolled back later."""
    patched = pytest.MonkeyPatch()

    def job(unit: str) -> str:
        present = open_store(loop.service._session.config)
        if present.current("a") is not None and present.values("a") == {"X": Secret(b"one")}:
            return loop._restart(unit)
        if loop.units.restarts == [A]:
            refusing_renewal(patched, "a")
            loop.new_key()
        return loop.fail_vm("a")

    loop.units.job = job
    try:
        loop.publish(x="bad", y="one")
        loop.turn(lambda: A in loop.units.restarts)
        for _ in range(5):
            loop.turn()
            loop.turn(lambda: True)
        assert loop.units.restarts == [A]
    finally:
        patched.undo()
    loop.turn(lambda: loop.units.unit(A).is_active)
    store = loop.store
    loop.turn(lambda: (now := store.attempt("a")) is not None and now.outcome is Outcome.ROLLED_BACK)
    assert store.values("a") == {"X": Secret(b"one")}


def test_a_vm_waits_no_longer_where_the_host_has_the_agents_key_again(loop: Loop) -> None:
    """One VM is still to be sealed anew when a third key comes that no directory takes, and goes again."""
    kept = loop.key.with_name("kept")
    with pytest.MonkeyPatch.context() as patched:
        refusing_renewal(patched, "a")
        loop.new_key()
        shutil.copy2(loop.key, kept)
        loop.turn()
        assert loop.store.of_earlier_key == {"a"}
        refusing_renewal(patched, "b")
        loop.new_key()
        loop.turn()
    kept.rename(loop.key)
    loop.turn(lambda: loop.turned.failure is None)
    loop.publish(x="two", y="one")
    loop.turn(lambda: A in loop.units.restarts)


def test_what_cannot_be_sealed_with_another_host_key_is_told(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent reports generations of the earlier key until it has sealed them anew."""
    conditions = loop.service._conditions
    with monkeypatch.context() as patched:
        refusing_renewal(patched, "a")
        loop.new_key()
        for _ in range(3):
            loop.turn()
            assert isinstance(loop.turned.failure, StoreError)
            assert "store" in conditions.keys
    loop.turn()
    assert "store" not in conditions.keys
    assert loop.store.generation("a", 1) is not None


def test_a_vm_that_comes_back_has_its_generations_with_another_host_key(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The configuration lacks a VM for a while, whose generations could not be listed at the change."""
    with monkeypatch.context() as patched:
        failing_listing(patched, "a")
        loop.new_key()
        loop.turn()
        loop.configure('[vms.b.credentials]\nY = { secret = "y" }\n')
        loop.service._reload()
    loop.turn()
    loop.configure(VMS)
    loop.service._reload()
    loop.turn()
    assert loop.store.generation("a", 1) is not None


def test_sealing_again_reaches_the_other_vms(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same after a change of the TPM: what does not open of another VM is sealed again."""
    store = loop.store
    (store.state / "tpm.json").write_text("{}")
    value = store.vm_directory("b") / "generations/1/value.Y"
    value.write_bytes(b"of a TPM that was cleared")
    failing_listing(monkeypatch, "a")
    loop.service._session.resealing._examined_at = float("-inf")
    loop.turn(lambda: store.current_number("b") == 2)


def test_an_order_that_cannot_be_given_keeps_no_other_vm_waiting(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rollback is ordered whose generation cannot be found: the order ends, and another VM goes on."""
    orders = loop.service._orders
    loop.publish(x="two", y="one")
    loop.turn(lambda: loop.decision("a").state is State.IN_STEP)
    loop.units.restarts.clear()
    orders.give("a", Order.ROLL_BACK, Operator(0))
    failing_listing(monkeypatch, "a")
    loop.publish(x="two", y="two")
    loop.turn(lambda: B in loop.units.restarts and orders.given("a") is None)


@pytest.mark.parametrize("loop", [HEALTH], indirect=True, ids=["health"])
def test_nothing_is_proved_without_a_generation_that_opens(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A health check was interrupted, and now nothing of the VM opens: no worker begins in vain."""
    store = loop.store
    now = store.current("a")
    assert now is not None
    attempt = Attempt(now.digest, Outcome.RESTARTING, run=now.run, before="f" * 32)
    store.record_attempt("a", attempt)
    generation = store.vm_directory("a") / "generations/1"
    (generation / "manifest").write_bytes(b"damaged")
    os.utime(generation, (1, 1))  # it counts as known until it changes
    began: list[str] = []
    plain = Rollout.restart

    def restart(rollout: Rollout, name: str, manager: SystemManager) -> State:
        began.append(name)
        return plain(rollout, name, manager)

    monkeypatch.setattr(Rollout, "restart", restart)
    loop.publish(y="one")  # the source lacks the VM's secret, so nothing is sealed in its place
    for _ in range(5):
        loop.turn()
        loop.turn(lambda: True)
    assert began == []


@pytest.mark.parametrize("loop", [HEALTH], indirect=True, ids=["health"])
def test_what_failed_its_check_is_never_noted_as_well(loop: Loop) -> None:
    """A value fails its health check, and the one before opens no more: the VM stays up, not well."""
    store = loop.store

    def health(_unit: str) -> str:
        for file in (store.vm_directory("a") / "generations/1").iterdir():
            file.unlink()
        return "failed"

    loop.units.health = health
    loop.publish(x="sick", y="one")
    loop.turn(lambda: (now := store.attempt("a")) is not None and now.outcome is Outcome.ROLLED_BACK)
    loop.turn()
    assert [each.generation for each in store.worked("a")] == [1]


def seal_alone(loop: Loop, **secrets: str) -> None:
    """Publish values, and have them sealed, with no restart asked for yet."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(RestartPool, "ask", lambda *_: None)
        loop.publish(**secrets)
        loop.turn()
        loop.turn()


def test_a_directory_that_takes_no_generation_keeps_no_other_vm_waiting(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One VM's directory has another owner, as after a restore: others go on, and it is reported."""
    refusing_writes(monkeypatch, "a")
    loop.publish(x="two", y="two")
    loop.turn(lambda: B in loop.units.restarts)
    assert A not in loop.units.restarts
    loop.turn(lambda: isinstance(loop.turned.failure, StoreError))
    monkeypatch.undo()
    loop.turn(lambda: A in loop.units.restarts)


def test_a_record_that_cannot_be_removed_keeps_no_other_vm_waiting(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent reports once that a restart is over and its record stays. Other VMs go on."""
    store = loop.store
    now = store.current("a")
    assert now is not None
    store.record_attempt("a", Attempt(now.digest, Outcome.RESTARTING, run=now.run, before="f" * 32))
    refusing_writes(monkeypatch, "a")
    loop.publish(x="one", y="two")
    loop.turn(lambda: B in loop.units.restarts)
    loop.turn()
    assert isinstance(loop.turned.failure, StoreError)
    assert [said for _, said in loop.told()].count("a: runs generation 1") == 1


def test_a_restart_that_cannot_be_recorded_keeps_no_other_vm_waiting(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One VM's restart is due and fails each time, with one thread for all: other VMs have their turn."""
    loop.configure(VMS, "attempts = 1\nconcurrency = 1")
    loop.service._reload()
    seal_alone(loop, x="two", y="two")
    refusing_writes(monkeypatch, "a")
    loop.turn(lambda: B in loop.units.restarts)
    assert A not in loop.units.restarts


def test_a_restart_that_cannot_be_recorded_is_told_once(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store is not told to be well between two tries. It is once the restart works, or is not due."""
    conditions = loop.service._conditions
    for sealed, later in (("two", "two"), ("three", "two")):
        seal_alone(loop, x=sealed, y="one")
        with monkeypatch.context() as patched:
            refusing_writes(patched, "a")
            loop.turn(lambda: "store" in conditions.keys)
            for _ in range(4):
                loop.turn(lambda: True)
                assert "store" in conditions.keys
        loop.publish(x=later, y="one")
        loop.turn(lambda: "store" not in conditions.keys and loop.decision("a").state is State.IN_STEP)


def test_many_restarts_that_cannot_be_recorded_cost_one_turn(loop: Loop) -> None:
    """On a full disk all restarts fail. One turn tells it, and the next one looks again."""
    for vm in "ab":
        loop.service._restarts._errors.put(StoreError(f"no room for {vm}", hint="make room"))
    loop.turn()
    assert str(loop.turned.failure) == "no room for a"
    loop.turn()
    assert loop.turned.failure is None


def test_an_order_without_a_way_back_ends(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A restart is ordered, and what the VM runs cannot be found: the order ends with the reason."""
    orders = loop.service._orders
    seal_alone(loop, x="two", y="one")
    (loop.store.vm_directory("a") / "generations/1/manifest").write_bytes(b"damaged")
    failing_listing(monkeypatch, "a")
    orders.give("a", Order.RESTART, Operator(0))
    loop.turn(lambda: orders.given("a") is None)
    assert "Input/output error" in orders.result("a")


def test_a_vm_that_is_down_is_put_back_where_the_disk_is_not_synced(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restart fails, and from then on each sync of the VM's directory: it comes up on what it ran."""
    store = loop.store
    directory = store.vm_directory("a")

    def job(unit: str) -> str:
        if store.current_number("a") == 1:
            return loop._restart(unit)
        failing_sync(monkeypatch, directory)
        return loop.fail_vm("a")

    loop.units.job = job
    loop.publish(x="bad", y="one")
    loop.turn(lambda: loop.units.restarts == [A, A] and loop.units.unit(A).is_active)
    monkeypatch.undo()
    loop.turn(lambda: (now := store.attempt("a")) is not None and now.outcome is Outcome.ROLLED_BACK)
    assert loop.units.restarts == [A, A]


def test_what_cannot_be_sealed_is_logged_once(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One VM's generations cannot be listed for long: the reason is logged once, until it ends."""
    for value in ("two", "three"):
        with monkeypatch.context() as patched:
            failing_listing(patched, "a")
            loop.publish(x=value, y="one")
            for _ in range(5):
                loop.turn()
        loop.turn(lambda: loop.decision("a").state is State.IN_STEP)
        output = capsys.readouterr()
        assert (output.out + output.err).count("cannot seal for a VM") == 1


def test_what_cannot_be_sealed_is_logged_each_time_it_begins(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The source goes back to what is sealed, so nothing is due. The fault is logged when it returns."""
    failing_listing(monkeypatch, "a")
    for _ in range(2):
        loop.publish(x="two", y="one")
        loop.turn(lambda: loop.decision("a").seal is not None)
        loop.turn()
        loop.publish(x="one", y="one")
        loop.turn(lambda: loop.decision("a").seal is None)
        loop.turn()
        output = capsys.readouterr()
        assert (output.out + output.err).count("cannot seal for a VM") == 1


def test_a_rollback_that_cannot_be_recorded_is_in_the_audit_once(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A VM is back on what it ran, and the record of that cannot be written: each try adds nothing."""
    plain, units, store = Store.record_attempt, loop.units, loop.store

    def record(of: Store, vm: str, attempt: Attempt | None) -> None:
        if attempt is not None and attempt.outcome is Outcome.ROLLED_BACK:
            raise StoreError("no room for it", hint="make room")
        plain(of, vm, attempt)

    def job(unit: str) -> str:
        if store.current_number("a") == 1:
            return loop._restart(unit)
        units.set(
            unit, active="failed", sub="failed", result="exit-code", invocation_id=f"{len(units.restarts):x}"
        )
        return "failed"

    units.job = job
    for times, value in ((1, "bad"), (2, "worse")):
        units.restarts.clear()
        with monkeypatch.context() as patched:
            patched.setattr(Store, "record_attempt", record)
            loop.publish(x=value, y="one")
            loop.turn(lambda: units.restarts == [A, A])
            for _ in range(3):
                loop.turn()
                loop.turn(lambda: True)
        assert [said for _, said in loop.told()].count("a: back on generation 1") == times
        loop.turn(lambda: (now := store.attempt("a")) is not None and now.outcome is Outcome.ROLLED_BACK)
