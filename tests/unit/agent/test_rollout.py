# SPDX-License-Identifier: MIT
"""One restart after the other: what is asked of systemd, noted, recorded, and gone back to.

Store, source, key, evidence, decisions and records are real. systemd is a model: a test says how jobs end.
"""

from __future__ import annotations

import itertools
import threading
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import msgspec
import pytest

from credferry.agent.audit.events import Event
from credferry.agent.errors import BusError, OrderError
from credferry.agent.reconcile.decision import State
from credferry.agent.reconcile.desired import Desired
from credferry.agent.reconcile.observed import NOT_REPORTED
from credferry.agent.rollout.rollback import generation_before
from credferry.agent.rollout.session import Session
from credferry.agent.store.locks import rollout_lock
from credferry.agent.store.records import Assumed, Attempt, Outcome, Way
from credferry.launcher.handoff import EVIDENCE_PARENT, evidence_name, stamp_path
from tests.support.loop import Loop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from credferry.agent.reconcile.observer import Look
    from credferry.agent.rollout.rollout import Rollout
    from credferry.agent.store.generations import Store
    from credferry.launcher.handoff import Manifest

VMS = "".join(f'[vms.{vm}.credentials]\nX = {{ secret = "x" }}\n' for vm in "ab")
CHECKED = VMS.replace("[vms.a.credentials]", "[vms.a]\nhealth = ['/bin/true']\n[vms.a.credentials]")
A, B = "microvm@a.service", "microvm@b.service"
CHECK = "credferry-health@a.service"
ORDER = "0" * 31 + "9"


class Host:
    """Two VMs that run the first generation, while the second is sealed."""

    def __init__(self, top: Path, vms: str = VMS) -> None:
        self.loop = Loop(top, vms)
        self.units = self.loop.units
        self.now = 1000.0

    def begin(self) -> None:
        """Have both VMs started, and a change sealed."""
        self.loop.publish(x="one")
        self.seal()
        for vm in "ab":
            self.loop.start_vm(vm)
        self.seal()
        self.change("two")

    @property
    def rollout(self) -> Rollout:
        """The service's own, with a clock that stands still."""
        return self.loop.service._session.rollout

    @property
    def store(self) -> Store:
        """The service's own."""
        return self.loop.store

    def timed(self) -> Rollout:
        """The service's own, with the test's clock."""
        return self._with_clock(lambda: self.now)

    def hasty(self) -> Rollout:
        """The service's own, with a clock by which half a second passes at each look at it."""
        ticks = itertools.count(1000)
        return self._with_clock(lambda: next(ticks) / 2)

    def _with_clock(self, monotonic: Callable[[], float]) -> Rollout:
        now = self.rollout
        return Session.of(
            now.config, now.store, now.audit, now.pacer, stop=now.stop, monotonic=monotonic
        ).rollout

    def look(self, *vms: str) -> Look:
        """A look at some VMs, or all."""
        service = self.loop.service
        wanted = [service._session.config.vm(vm) for vm in vms or service._session.config.vms]
        return service._session.observer.look_or_refuse(wanted, self.units)

    def seal(self, *vms: str) -> None:
        """Seal what is due."""
        self.loop.service._session.sealer.seal_due(self.look(*vms))

    def change(self, value: str) -> None:
        """Publish another value, and seal it."""
        self.loop.publish(x=value)
        self.seal()

    def current(self, vm: str = "a") -> Manifest:
        """What is sealed."""
        manifest = self.store.current(vm)
        assert manifest is not None
        return manifest

    def note(self, vm: str = "a", outcome: Outcome = Outcome.RESTARTING, **fields: Any) -> Attempt:  # noqa: ANN401 (an attempt's fields)
        """Have a restart noted."""
        manifest = self.current(vm)
        attempt = Attempt(manifest.digest, outcome, **{"previous": 1, "run": manifest.run, **fields})
        self.store.record_attempt(vm, attempt)
        return attempt

    def fail(self, unit: str = A) -> str:
        """A start that fails."""
        number = int(self.units.unit(unit).invocation_id, 16) + 1
        self.units.set(
            unit, active="failed", sub="failed", result="exit-code", invocation_id=f"{number:032x}"
        )
        return "failed"

    def fail_on_newer(self, unit: str) -> str:
        """A start that fails on what is newer than the first generation."""
        vm = unit.removeprefix("microvm@").removesuffix(".service")
        return self.fail(unit) if self.current(vm).generation > 1 else self.loop._restart(unit)

    def records(self) -> list[tuple[Event, str, str, str, str]]:
        """Of each record since the last call: event, VM, unit, generation, run."""
        found = [dict(field.partition("=")[::2] for field in fields) for fields in self.loop.sent]
        self.loop.sent.clear()
        return [
            (
                Event(each["MESSAGE_ID"]),
                each.get("CREDFERRY_VM", ""),
                each.get("OBJECT_SYSTEMD_UNIT", ""),
                each.get("CREDFERRY_GENERATION", ""),
                each.get("CREDFERRY_RUN", ""),
            )
            for each in found
        ]

    def messages(self) -> str:
        """What the records since the last call say."""
        said = "\n".join(
            field for fields in self.loop.sent for field in fields if field.startswith("MESSAGE=")
        )
        self.loop.sent.clear()
        return said


def hosted(top: Path, vms: str = VMS, rollout: str = "attempts = 1") -> Iterator[Host]:
    """A host, whose service does nothing by itself."""
    host = Host(top, vms)
    host.loop.configure(vms, rollout)
    with host.loop.made():
        host.begin()
        host.loop.sent.clear()
        yield host


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """Two VMs that are due."""
    yield from hosted(tmp_path)


@pytest.fixture
def patient(tmp_path: Path) -> Iterator[Host]:
    """The same, where a restart is tried three times."""
    yield from hosted(tmp_path, rollout="attempts = 3")


@pytest.fixture
def checked(tmp_path: Path) -> Iterator[Host]:
    """The same, where VM a has a check of its health."""
    yield from hosted(tmp_path, CHECKED)


def test_a_restart_is_noted_asked_for_and_recorded(host: Host) -> None:
    """What systemd is about to be asked is noted before; nothing is left of it after a success."""
    run, before = host.current().run, host.units.unit(A).invocation_id
    noted: list[Attempt | None] = []

    def job(unit: str) -> str:
        noted.append(host.store.attempt("a"))
        host.now += 7.5
        return host.loop._restart(unit)

    host.units.job = job
    assert host.timed().restart("a", host.units) is State.IN_STEP
    digest = host.current().digest
    assert noted == [Attempt(digest, Outcome.RESTARTING, previous=1, run=run, before=before)]
    assert host.store.attempt("a") is None
    assert host.units.restarts == [A]
    assert "generation 2, restarted in 7.5 s" in host.messages()
    assert host.rollout.restart("a", host.units) is State.IN_STEP
    assert host.units.restarts == [A]
    host.rollout.restart("b", host.units)
    assert host.records() == [
        (Event.RESTART_ASKED, "b", B, "2", run),
        (Event.RESTARTED, "b", B, "2", run),
    ]


def test_a_failure_is_tried_again_and_rolled_back(patient: Host) -> None:
    """As often as the configuration says; each is recorded, and so is the way back."""
    run, digest, before = (
        patient.current().run,
        patient.current().digest,
        patient.units.unit(A).invocation_id,
    )
    patient.units.job = patient.fail_on_newer
    assert patient.rollout.restart("a", patient.units) is State.FAILED
    assert patient.units.restarts == [A] * 4
    assert patient.records() == [
        *[(Event.RESTART_ASKED, "a", A, "2", run), (Event.RESTART_FAILED, "a", A, "2", run)] * 3,
        (Event.ROLLED_BACK, "a", A, "1", patient.current().run),
    ]
    attempt = patient.store.attempt("a")
    assert attempt is not None
    assert "'failed'" in attempt.reason
    assert "rolled back to generation 1" in attempt.reason
    assert msgspec.structs.replace(attempt, reason="") == Attempt(
        digest, Outcome.ROLLED_BACK, previous=1, run=run, before=before
    )
    assert patient.current().generation == 1
    assert patient.units.unit(A).is_active


def test_a_success_at_the_second_try_is_a_success(patient: Host) -> None:
    """The way of asking is then the one for a unit that is down."""
    asked: list[str] = []
    results = iter([patient.fail, patient.loop._restart])

    def ask(word: str) -> Callable[[str], str]:
        def job(name: str) -> str:
            asked.append(word)
            return next(results)(name)

        return job

    manager = SimpleNamespace(
        unit=patient.units.unit,
        units=patient.units.units,
        try_restart=ask("try"),
        restart_failed=ask("failed"),
    )
    assert patient.rollout.restart("a", cast("Any", manager)) is State.IN_STEP
    assert asked == ["try", "failed"]
    assert patient.store.attempt("a") is None


@pytest.mark.parametrize("ends", ["stopped", "with a job", "on it"])
def test_a_vm_that_somebody_took_over_is_left_alone(patient: Host, ends: str) -> None:
    """Stopped, being started, or running what it should: there is nothing more to try."""

    def job(unit: str) -> str:
        patient.fail(unit)
        if ends == "stopped":
            patient.loop.stop_vm("a")
        elif ends == "with a job":
            patient.units.set(unit, has_job=True)
        else:
            patient.loop.start_vm("a")
        return "failed"

    patient.units.job = job
    assert patient.rollout.restart("a", patient.units) is State.CHANGING
    assert patient.units.restarts == [A]
    assert patient.store.attempt("a") is not None


def test_a_vm_that_runs_on_after_a_failed_job_is_tried_again(patient: Host) -> None:
    """It runs what it ran before: that is not what it is restarted for."""
    results = iter(["failed", "failed"])
    patient.units.job = lambda unit: next(results, "") or patient.loop._restart(unit)
    assert patient.rollout.restart("a", patient.units) is State.IN_STEP
    assert patient.units.restarts == [A] * 3


def test_a_failed_vm_halts_the_others(host: Host) -> None:
    """Those that are up and due for the same change are held back, with the VM that failed named."""
    host.units.job = host.fail_on_newer
    host.rollout.restart("a", host.units)
    host.records()
    manifest = host.current("b")
    assert host.rollout.restart("b", host.units) is State.HALTED
    attempt = host.store.attempt("b")
    assert attempt is not None
    assert attempt.reason == "because the restart of a for the same change failed"
    assert msgspec.structs.replace(attempt, reason="") == Attempt(
        manifest.digest, Outcome.HALTED, previous=1, run=manifest.run, halted_for="a"
    )
    assert host.records() == [(Event.HALTED, "b", B, "2", manifest.run)]
    assert B not in host.units.restarts


@pytest.mark.parametrize(
    ("field", "halts"),
    [
        ({}, True),
        ({"outcome": Outcome.ROLLED_BACK}, True),
        ({"outcome": Outcome.HALTED}, False),
        ({"outcome": Outcome.RETRY}, False),
        ({"run": "f" * 32}, False),
        ({"by_operator": True}, False),
        ({"digest": "f" * 64}, False),
    ],
    ids=str,
)
def test_what_halts_the_others(host: Host, field: dict[str, Any], halts: bool) -> None:
    """A failure, of the same change, of what is still published, and not an operator's word."""
    manifest = host.current()
    known = {"digest": manifest.digest, "outcome": Outcome.FAILED, "previous": 1, "run": manifest.run}
    host.store.record_attempt("a", Attempt(**{**known, **field}))
    assert host.rollout.restart("b", host.units) is (State.HALTED if halts else State.IN_STEP)


def test_a_vm_that_is_down_by_us_or_to_be_tried_again_is_not_halted(host: Host) -> None:
    """For another's sake none is left down, and an operator's word goes before."""
    host.note("a", Outcome.FAILED)
    host.note("b", Outcome.RETRY, order=ORDER, previous=1)
    assert host.rollout.restart("b", host.units) is State.IN_STEP
    assert host.records() == [
        (Event.RESTART_ASKED, "b", B, "2", ORDER),
        (Event.RESTARTED, "b", B, "2", ORDER),
    ]
    host.change("three")
    host.note("a", Outcome.FAILED)
    host.store.record_attempt("b", Attempt("f" * 64, Outcome.FAILED, previous=2, run="f" * 32, order=ORDER))
    host.fail(B)
    assert host.rollout.restart("b", host.units) is State.IN_STEP
    assert {run for *_, run in host.records()} == {host.current("b").run}


def test_a_vm_that_would_not_start_again_is_left_running(host: Host) -> None:
    """By a rotation as by an order."""
    host.loop.key.chmod(0o600)
    assert host.rollout.restart("a", host.units) is State.REFUSED
    with pytest.raises(OrderError, match="would not start again"):
        host.rollout.rotate("a", host.units, 0.0, ORDER)
    with pytest.raises(OrderError, match="would not start again"):
        host.rollout.roll_back("a", host.units, ORDER)
    assert host.units.restarts == []
    assert host.store.attempt("a") is None


def test_something_newer_is_sealed_first_but_not_for_ever(host: Host) -> None:
    """A producer that never rests is waited for three times in a row."""
    host.loop.publish(x="three")
    for _ in range(2):
        assert [host.rollout.restart("a", host.units) for _ in range(3)] == [State.RESTART_DUE] * 3
        assert host.units.restarts == []
        assert host.rollout.restart("a", host.units) is State.IN_STEP
        host.units.restarts.clear()
        host.loop.stop_vm("a")
        host.loop.start_vm("a")
        host.change("four")
        host.loop.publish(x="five")
    for _ in range(3):
        assert host.rollout.rotate("a", host.units, 0.0, ORDER) is None
        assert host.rollout.roll_back("b", host.units, ORDER) is None
    assert host.units.restarts == []


def test_what_cannot_be_sealed_restarts_nothing(host: Host) -> None:
    """While a change cannot be sealed, a VM that runs what is sealed is not restarted onto that again."""
    assert host.rollout.restart("a", host.units) is State.IN_STEP
    host.units.restarts.clear()
    host.loop.publish(x="never sealed")
    assert [host.rollout.restart("a", host.units) for _ in range(9)] == [State.RESTART_DUE] * 9
    assert host.units.restarts == []


def test_a_start_on_something_newer_ends_the_recorded_restart(host: Host) -> None:
    """The agent died in a restart, and the VM came up on what was sealed since: that is what is recorded."""
    host.note(before=host.units.unit(A).invocation_id)
    host.change("three")
    host.loop.start_vm("a")
    host.records()
    host.rollout.forget_ended(host.look("a"))
    assert host.store.attempt("a") is None
    assert [(event, generation) for event, _, _, generation, _ in host.records()] == [(Event.RESTARTED, "3")]


def test_a_restart_that_never_began_ends_with_its_change(host: Host) -> None:
    """The agent died before it asked, and the change was taken back: nothing is due, nothing is recorded."""
    host.note(before=host.units.unit(A).invocation_id)
    host.change("one")
    host.records()
    host.rollout.forget_ended(host.look("a"))
    assert host.store.attempt("a") is None
    assert host.records() == []


def test_an_ordered_restart_that_never_began_is_not_recorded(checked: Host) -> None:
    """The VM ran what is sealed, and the agent died before it asked: no restart, nothing to be checked."""
    checked.loop.start_vm("a")
    checked.note(before=checked.units.unit(A).invocation_id, order=ORDER)
    look = checked.look("a")
    assert not look.decisions[0].prove
    checked.rollout.forget_ended(look)
    assert checked.store.attempt("a") is None
    assert checked.records() == []


def test_what_came_up_on_something_newer_is_checked_after_the_agent_s_end(checked: Host) -> None:
    """A change is sealed while the VM is down, and the agent ends in the health check: the next checks."""
    asked: list[int] = []

    def job(unit: str) -> str:
        if not asked:
            checked.change("three")
        return checked.loop._restart(unit)

    def health(_name: str) -> str:
        asked.append(checked.current().generation)
        if len(asked) == 1:
            checked.rollout.stop.set()
            return "canceled"
        return "failed"

    checked.units.job, checked.units.health = job, health
    checked.rollout.restart("a", checked.units)
    checked.rollout.stop.clear()
    look = checked.look("a")
    assert look.decisions[0].prove
    checked.rollout.forget_ended(look)
    assert checked.store.attempt("a") is not None
    assert checked.rollout.restart("a", checked.units) is State.FAILED
    assert asked == [3, 3]
    assert checked.current().generation == 1


@pytest.mark.parametrize("ends", [False, True], ids=["seen", "after the agent's end"])
def test_something_newer_that_fails_its_check_is_not_tried_again(checked: Host, ends: bool) -> None:
    """It came up on what was sealed while it was down: just that has failed, and halts who waits for it."""
    newer: list[Manifest] = []

    def job(unit: str) -> str:
        if not newer:
            checked.change("three")
            newer.append(checked.current())
        return checked.loop._restart(unit)

    def dies(_: str) -> str:
        checked.rollout.stop.set()
        return "canceled"

    checked.units.job = job
    if ends:
        checked.units.health = dies
        checked.rollout.restart("a", checked.units)
        checked.rollout.stop.clear()
    checked.units.health = lambda _: "failed"
    assert checked.rollout.restart("a", checked.units) is State.FAILED
    checked.seal("a")
    assert checked.current().generation == 1
    assert not checked.look("a").decisions[0].needs_rollout
    attempt = checked.store.attempt("a")
    assert attempt is not None
    assert (attempt.digest, attempt.run) == (newer[0].digest, newer[0].run)
    assert checked.units.restarts == [A, A]
    assert checked.rollout.restart("b", checked.units) is State.HALTED


def test_a_start_without_evidence_is_checked_after_the_agent_s_end(checked: Host) -> None:
    """The agent ends in the health check: the next makes up for it, and ends the story."""

    def job(unit: str) -> str:
        checked.loop._restart(unit)
        (checked.loop.top / "run" / EVIDENCE_PARENT / f"a@{checked.units.unit(A).invocation_id}").unlink()
        return "done"

    def ends(_: str) -> str:
        checked.rollout.stop.set()
        return "canceled"

    checked.units.job, checked.units.health = job, ends
    checked.rollout.restart("a", checked.units)
    checked.rollout.stop.clear()
    look = checked.look("a")
    assert (look.decisions[0].prove, look.decisions[0].forget) == (True, False)
    checked.units.health = lambda _: "done"
    checked.records()
    assert checked.rollout.restart("a", checked.units) is State.IN_STEP
    assert [(event, number) for event, _, _, number, _ in checked.records()] == [(Event.RESTARTED, "2")]
    invocation, digest = checked.units.unit(A).invocation_id, checked.current().digest
    assert checked.store.assumed("a") == Assumed(invocation, digest, 2)


@pytest.mark.parametrize("why", ["refused", "held", "waits"])
def test_an_interrupted_check_waits_for_nothing(tmp_path: Path, why: str) -> None:
    """The agent checks the health of a VM that gets no newer value, too, and rolls it back if that fails."""
    vms = CHECKED.replace("health", "restarts_per_hour = 1\nhealth", 1)
    for host in hosted(tmp_path, vms):
        host.loop.start_vm("a")
        host.note(before="f" * 32)
        if why == "refused":
            host.loop.publish(other="x")
        else:
            host.change("three")
        if why == "held":
            host.store.hold("a", held=True)
        if why == "waits":
            host.rollout.pacer.note(host.rollout.config.vm("a"), Way.RESTART)
        asked: list[str] = []

        def health(unit: str, asked: list[str] = asked) -> str:
            asked.append(unit)
            return "failed"

        host.units.health = health
        assert host.rollout.restart("a", host.units) is State.FAILED
        assert (asked, host.units.restarts) == ([CHECK], [A])
        assert host.current().generation == 1
        attempt = host.store.attempt("a")
        assert attempt is not None
        assert attempt.outcome is Outcome.ROLLED_BACK


def test_what_is_due_comes_before_an_interrupted_check(checked: Host) -> None:
    """The VM is restarted onto the newer value at once, and checked on that."""
    checked.loop.start_vm("a")
    checked.note(before="f" * 32)
    checked.change("three")
    asked: list[int] = []

    def health(_: str) -> str:
        asked.append(checked.look("a").observed[0].runs.generation)  # type: ignore[union-attr]  # it is up
        return "done"

    checked.units.health = health
    assert checked.rollout.restart("a", checked.units) is State.IN_STEP
    assert asked == [3]


@pytest.mark.parametrize(("previous", "back"), [(1, 1), (0, 3)], ids=["known", "none"])
def test_what_was_not_checked_is_no_way_back(checked: Host, previous: int, back: int) -> None:
    """It came up on something newer, and the agent ended in the check. It is better than nothing, though."""
    checked.note(before="f" * 32, previous=previous)
    checked.change("three")
    checked.loop.start_vm("a")
    checked.change("four")
    assert generation_before(checked.store, checked.look("a").observed[0]) == back


def test_an_order_restarts_what_is_in_step(host: Host) -> None:
    """Onto the same generation, which is also the one to roll back to; the records are the order's."""
    host.rollout.restart("a", host.units)
    host.records()
    host.units.restarts.clear()
    noted: list[Attempt | None] = []

    def job(unit: str) -> str:
        noted.append(host.store.attempt("a"))
        return host.loop._restart(unit)

    host.units.job = job
    manifest, before = host.current(), host.units.unit(A).invocation_id
    host.units.set(A, active_seconds=50.0)
    timed = host.timed()
    assert timed.rotate("a", host.units, 949.0, ORDER) is State.IN_STEP
    assert host.units.restarts == []
    assert timed.rotate("a", host.units, 950.0, ORDER) is State.IN_STEP
    assert host.units.restarts == [A]
    assert noted == [
        Attempt(
            *(manifest.digest, Outcome.RESTARTING),
            previous=2,
            run=manifest.run,
            order=ORDER,
            before=before,
        )
    ]
    assert host.records() == [
        (Event.RESTART_ASKED, "a", A, "2", ORDER),
        (Event.RESTARTED, "a", A, "2", ORDER),
    ]


def test_an_order_restarts_what_is_due_whenever_it_started(host: Host) -> None:
    """And notes what the VM runs, as any restart does."""
    previous: list[int] = []

    def job(unit: str) -> str:
        attempt = host.store.attempt("a")
        previous.append(attempt.previous if attempt else 0)
        return host.loop._restart(unit)

    host.units.job = job
    host.units.set(A, active_seconds=1.0)
    assert host.timed().rotate("a", host.units, 0.0, ORDER) is State.IN_STEP
    assert previous == [1]


def test_an_ordered_restart_that_fails_is_followed_by_another_start(host: Host) -> None:
    """The VM ran this generation before, so the agent starts it once more. Nothing is held against it."""
    host.rollout.restart("a", host.units)
    host.records()
    host.units.set(A, active_seconds=50.0)

    def job(unit: str) -> str:
        attempt = host.store.attempt("a")
        is_restart = attempt is not None and attempt.outcome is Outcome.RESTARTING
        return host.fail(unit) if is_restart else host.loop._restart(unit)

    host.units.job = job
    assert host.timed().rotate("a", host.units, 950.0, ORDER) is State.IN_STEP
    assert host.store.attempt("a") is None
    assert host.units.unit(A).is_active
    assert host.records() == [
        (Event.RESTART_ASKED, "a", A, "2", ORDER),
        (Event.RESTART_FAILED, "a", A, "2", ORDER),
        (Event.ROLLED_BACK, "a", A, "2", ORDER),
    ]
    assert host.look("a").decisions[0].state is not State.FAILED


def test_an_order_does_not_restart_an_unhealthy_vm_twice(checked: Host) -> None:
    """It ran the same generation before: another restart would not make it healthy."""
    checked.rollout.restart("a", checked.units)
    checked.units.set(A, active_seconds=50.0)
    checked.units.health = lambda _: "failed"
    checked.units.restarts.clear()
    assert checked.timed().rotate("a", checked.units, 950.0, ORDER) is State.FAILED
    assert checked.units.restarts == [A]
    attempt = checked.store.attempt("a")
    assert attempt is not None
    assert (attempt.outcome, attempt.previous) == (Outcome.FAILED, 0)


def test_an_order_that_was_dropped_does_nothing(host: Host) -> None:
    """It is asked again under the VM's lock."""
    assert host.rollout.rotate("a", host.units, 0.0, ORDER, lambda: False) is State.CHANGING
    assert host.rollout.roll_back("a", host.units, ORDER, lambda: False) is State.CHANGING
    assert host.units.restarts == []
    host.loop.stop_vm("a")
    with pytest.raises(OrderError):
        host.rollout.rotate("a", host.units, 0.0, ORDER)


def test_an_order_puts_a_vm_back(host: Host) -> None:
    """It is noted before anything is done, and the VM stays there by an operator's word."""
    host.rollout.restart("a", host.units)
    host.records()
    noted: list[Attempt | None] = []

    def job(unit: str) -> str:
        noted.append(host.store.attempt("a"))
        return host.loop._restart(unit)

    host.units.job = job
    manifest = host.current()
    assert host.rollout.roll_back("a", host.units, ORDER) is State.ROLLED_BACK
    wanted = Attempt(
        manifest.digest, Outcome.FAILED, previous=1, run=manifest.run, by_operator=True, order=ORDER, ran=2
    )
    assert noted == [wanted]
    done = host.store.attempt("a")
    assert done is not None
    assert done.reason.startswith("rolled back to generation 1 by an operator")
    assert msgspec.structs.replace(done, reason="") == msgspec.structs.replace(
        wanted, outcome=Outcome.ROLLED_BACK, ran=0
    )
    assert host.records() == [(Event.ROLLED_BACK, "a", A, "1", ORDER)]
    assert host.current().generation == 1
    with pytest.raises(OrderError):
        host.rollout.roll_back("a", host.units, ORDER)


def test_a_stopped_vm_is_put_back_without_a_start(host: Host) -> None:
    """Where nothing is published, what is sealed is what it is put back from."""
    host.loop.stop_vm("a")
    digest = host.current().digest
    host.loop.publish(y="nothing of its")
    assert host.rollout.roll_back("a", host.units, ORDER) is State.ROLLED_BACK
    attempt = host.store.attempt("a")
    assert attempt is not None
    assert attempt.digest == digest
    assert host.units.restarts == []
    assert host.current().generation == 1


def test_an_interrupted_restart_is_rolled_back(host: Host) -> None:
    """With its reason, if it had one; what has failed is noted before anything is put back."""
    for reason in ("", "it broke"):
        host.change(f"{reason} two")
        attempt = host.note(reason=reason, before="f" * 32)
        host.fail()
        noted: list[Attempt | None] = []

        def job(unit: str, noted: list[Attempt | None] = noted) -> str:
            noted.append(host.store.attempt("a"))
            return host.loop._restart(unit)

        host.units.job = job
        assert host.rollout.restart("a", host.units) is State.FAILED
        (seen,) = noted
        assert seen is not None
        assert msgspec.structs.replace(seen, reason="") == msgspec.structs.replace(
            attempt, outcome=Outcome.FAILED, reason=""
        )
        assert (reason or "interrupted") in seen.reason
        done = host.store.attempt("a")
        assert done is not None
        assert (reason or "interrupted") in done.reason
        assert done.reason.endswith("; rolled back to generation 1")


def test_a_generation_that_is_gone_is_not_gone_back_to(host: Host) -> None:
    """The record says so, under the order, and the VM is left as it is."""
    host.note(outcome=Outcome.FAILED, previous=9, order=ORDER)
    host.fail()
    assert host.rollout.restart("a", host.units) is State.FAILED
    assert host.records() == [(Event.ROLLBACK_FAILED, "a", A, "", ORDER)]
    attempt = host.store.attempt("a")
    assert attempt is not None
    assert attempt.outcome is Outcome.ROLLED_BACK
    assert "no longer exists" in attempt.reason
    assert host.units.restarts == []


def test_a_generation_that_does_not_start_either_is_told(host: Host) -> None:
    """By an operator's word as well: then the VM has failed, and is not held."""
    host.units.job = host.fail
    assert host.rollout.restart("a", host.units) is State.FAILED
    assert host.records()[-1] == (Event.ROLLBACK_FAILED, "a", A, "1", host.current().run)
    attempt = host.store.attempt("a")
    assert attempt is not None
    assert attempt.reason.count("'failed'") == 2
    host.loop.start_vm("b")
    assert host.rollout.roll_back("b", host.units, ORDER) is State.FAILED
    assert host.records() == [
        (Event.ROLLBACK_FAILED, "b", B, "1", ORDER),
        (Event.ROLLBACK_FAILED, "b", B, "2", ORDER),
    ]


def test_a_vm_whose_ordered_rollback_fails_is_held_on_what_it_ran(host: Host) -> None:
    """The operator wants it off the newest generation, which was not tried. Nothing counts against that."""
    for held in (True, False):
        for vm in ("a", "b"):
            host.store.hold(vm, held=held)
        if held:
            host.loop.publish(x="three")
            host.loop.turn()
    assert host.current().generation == 3
    (host.store.vm_directory("a") / "worked.json").unlink()  # nothing is known but what was sealed

    noted: list[int] = []

    def job(unit: str) -> str:
        attempt = host.store.attempt("a")
        assert attempt is not None
        noted.append(attempt.previous)  # what an agent that dies here goes on with
        return host.fail(unit) if host.current().generation == 2 else host.loop._restart(unit)

    host.units.job = job
    host.records()
    assert host.rollout.roll_back("a", host.units, ORDER) is State.FAILED
    assert noted == [2, 1]
    assert host.records() == [
        (Event.ROLLBACK_FAILED, "a", A, "2", ORDER),
        (Event.ROLLED_BACK, "a", A, "1", ORDER),
    ]
    attempt = host.store.attempt("a")
    assert attempt is not None
    assert (attempt.outcome, attempt.previous, attempt.by_operator) == (Outcome.ROLLED_BACK, 1, True)
    assert attempt.reason.startswith("systemd's job ended with 'failed'; rolled back to generation 1")
    assert host.rollout.restart("b", host.units) is not State.HALTED


def test_a_rollback_that_could_not_be_recorded_restarts_the_vm_once(host: Host) -> None:
    """The next check finds the start under way, waits until it counts as launched, and asks for no other."""
    host.units.job = host.fail_on_newer
    assert host.rollout.restart("a", host.units) is State.FAILED
    attempt = host.store.attempt("a")
    assert attempt is not None
    host.store.record_attempt("a", msgspec.structs.replace(attempt, outcome=Outcome.FAILED))
    host.loop.start_vm("a")
    host.units.set(A, active_seconds=0.0)
    stamp_path("a", host.loop.top / "run").unlink()
    host.units.restarts.clear()
    host.records()
    assert host.hasty().restart("a", host.units) is State.FAILED
    assert host.units.restarts == []
    assert host.records() == [(Event.ROLLED_BACK, "a", A, "1", host.current().run)]


def test_a_rollback_is_tried_as_often_as_a_restart_and_no_more(patient: Host) -> None:
    """The agent then says that the generation does not start either."""
    patient.units.job = patient.fail
    assert patient.rollout.restart("a", patient.units) is State.FAILED
    assert patient.units.restarts == [A] * 6
    attempt = patient.store.attempt("a")
    assert attempt is not None
    assert attempt.reason.count("systemd's job ended with 'failed'") == 2


def test_the_agent_pauses_longer_before_each_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a restart, and of the rollback that follows."""
    pauses: list[float] = []

    def wait(seconds: float | None = None) -> bool:
        pauses.append(seconds or 0.0)
        return False

    for host in hosted(tmp_path, rollout="attempts = 4\nretry_seconds = 5"):
        host.units.job = host.fail
        monkeypatch.setattr(host.rollout.stop, "wait", wait)
        assert host.rollout.restart("a", host.units) is State.FAILED
    assert pauses == [5, 10, 20] * 2


def test_a_report_that_comes_late_is_waited_for(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the time that a launcher has, the agent looks for it again and again."""
    path = stamp_path("a", host.loop.top / "run")
    reports: list[bytes] = []

    def job(unit: str) -> str:
        host.loop._restart(unit)
        reports.append(path.read_bytes())
        path.unlink()
        host.units.set(A, active="activating", sub="start")
        return "done"

    def wait(_seconds: float | None = None) -> bool:
        path.write_bytes(reports[0])
        host.units.set(A, active="active", sub="running")
        return False

    host.units.job = job
    rollout = host.timed()
    monkeypatch.setattr(rollout.stop, "wait", wait)
    assert rollout.restart("a", host.units) is State.IN_STEP
    assert NOT_REPORTED not in host.messages()


def test_a_stop_ends_a_rollback_between_two_attempts(patient: Host) -> None:
    """The agent ends; the next one goes on from the record."""

    def job(unit: str) -> str:
        if patient.current().generation == 1:
            patient.rollout.stop.set()
        return patient.fail(unit)

    patient.units.job = job
    assert patient.rollout.restart("a", patient.units) is State.CHANGING
    assert patient.units.restarts == [A] * 4


def test_an_operator_who_stops_the_vm_ends_its_rollback(patient: Host) -> None:
    """No further attempt starts the VM against the operator's will."""

    def job(unit: str) -> str:
        result = patient.fail(unit)
        if patient.current().generation == 1:
            patient.loop.stop_vm("a")
        return result

    patient.units.job = job
    patient.rollout.restart("a", patient.units)
    assert patient.units.restarts == [A] * 4
    assert not patient.units.unit(A).is_active


def test_a_vm_that_an_ordered_rollback_left_down_is_started_again(host: Host) -> None:
    """Also if systemd does not remember how the job ended, so that the VM looks like a stopped one."""
    host.rollout.restart("a", host.units)

    def job(unit: str) -> str:
        if host.current().generation == 1:
            host.loop.stop_vm("a")
            return "dependency"
        return host.loop._restart(unit)

    host.units.job = job
    assert host.rollout.roll_back("a", host.units, ORDER) is State.FAILED
    assert host.units.unit(A).is_active


def test_an_ordered_generation_that_does_not_start_is_left_again(host: Host) -> None:
    """The VM goes back to what it ran when the operator ordered the rollback, and the order has failed."""
    host.rollout.restart("a", host.units)
    host.records()

    def job(unit: str) -> str:
        return host.fail(unit) if host.current().generation == 1 else host.loop._restart(unit)

    host.units.job = job
    assert host.rollout.roll_back("a", host.units, ORDER) is State.FAILED
    assert host.records() == [
        (Event.ROLLBACK_FAILED, "a", A, "1", ORDER),
        (Event.ROLLED_BACK, "a", A, "2", ORDER),
    ]
    assert host.store.attempt("a") is None
    assert host.units.unit(A).is_active


def test_a_vm_that_somebody_starts_between_attempts_of_its_rollback(
    patient: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It runs what the rollback was to bring it, so the rollback is done, and starts it no more."""
    pauses: list[float | None] = []
    patient.units.job = patient.fail

    def wait(seconds: float | None = None) -> bool:
        pauses.append(seconds)
        if len(pauses) == 3:  # the first of the rollback
            patient.loop.start_vm("a")
        return False

    monkeypatch.setattr(patient.rollout.stop, "wait", wait)
    patient.records()
    assert patient.rollout.restart("a", patient.units) is State.FAILED
    assert patient.units.restarts == [A] * 4
    assert patient.records()[-1] == (Event.ROLLED_BACK, "a", A, "1", patient.current().run)


def test_a_rollback_has_as_many_attempts_as_a_restart(patient: Host) -> None:
    """A start that fails once says little about a generation that the VM ran before."""
    tries: list[int] = []

    def job(unit: str) -> str:
        generation = patient.current().generation
        tries.append(generation)
        return patient.loop._restart(unit) if tries.count(1) == 3 else patient.fail(unit)

    patient.units.job = job
    assert patient.rollout.restart("a", patient.units) is State.FAILED
    assert tries == [2, 2, 2, 1, 1, 1]
    assert patient.records()[-1][0] is Event.ROLLED_BACK
    assert patient.units.unit(A).is_active


def test_a_vm_without_a_generation_before_has_failed(host: Host) -> None:
    """There is nothing to put back: what is sealed stays."""
    host.note(outcome=Outcome.RETRY, previous=0)
    host.fail()
    host.units.job = host.fail_on_newer
    assert host.rollout.restart("a", host.units) is State.FAILED
    attempt = host.store.attempt("a")
    assert attempt is not None
    assert (attempt.outcome, attempt.previous) == (Outcome.FAILED, 0)
    assert "'failed'" in attempt.reason
    assert host.current().generation == 2


def test_a_key_that_changed_meanwhile_fails_no_generation(host: Host) -> None:
    """The restart is to be tried again, once the key is taken up."""

    def job(unit: str) -> str:
        host.loop.new_key()
        return host.fail(unit)

    host.units.job = job
    noted = host.current()
    assert host.rollout.restart("a", host.units) is State.CHANGING
    attempt = host.store.attempt("a")
    assert attempt is not None
    assert (attempt.outcome, attempt.digest, attempt.run) == (Outcome.RETRY, noted.digest, noted.run)
    assert "'failed'" in attempt.reason
    host.note(outcome=Outcome.FAILED)
    assert (
        host.rollout.rollback.roll_back(host.look("a").observed[0].vm, attempt, host.units) is State.CHANGING
    )
    assert host.store.attempt("a") == msgspec.structs.replace(attempt, outcome=Outcome.FAILED)


def test_a_key_file_that_systemd_refuses_fails_no_generation(host: Host) -> None:
    """The VM is down, and stays so until the key's file is right again. Then the agent tries again."""

    def job(unit: str) -> str:
        host.loop.key.chmod(0o644)
        return host.fail(unit)

    host.units.job = job
    noted = host.current()
    assert host.rollout.restart("a", host.units) is State.CHANGING
    attempt = host.store.attempt("a")
    assert attempt is not None
    assert (attempt.outcome, attempt.digest) == (Outcome.RETRY, noted.digest)
    asked = len(host.units.restarts)
    decision = host.look("a").decisions[0]
    assert (decision.state, decision.restart, decision.unready) == (State.REFUSED, False, True)
    assert "it would not start: " in decision.reasons[0]
    assert "chmod 0400" in decision.reasons[0]
    assert host.rollout.restart("a", host.units) is State.REFUSED
    assert len(host.units.restarts) == asked
    host.loop.key.chmod(0o400)
    host.units.job = host.loop._restart
    assert host.rollout.restart("a", host.units) is State.IN_STEP


@pytest.mark.parametrize("when", ["stopped", "canceled"])
def test_an_operator_who_overrules_a_restart_is_obeyed(host: Host, when: str) -> None:
    """Nothing is noted as failed, and nothing is done again."""

    def job(_: str) -> str:
        if when == "stopped":
            host.loop.start_vm("a")
            host.loop.stop_vm("a")
            return "done"
        return "canceled"

    host.units.job = job
    assert host.hasty().restart("a", host.units) is State.CHANGING
    assert host.store.attempt("a") is None
    assert [event for event, *_ in host.records()] == [Event.RESTART_ASKED]


def test_an_agent_that_stops_leaves_the_end_to_the_next(host: Host) -> None:
    """What was asked stays noted; nothing is judged or put back."""

    def job(unit: str) -> str:
        host.rollout.stop.set()
        return host.fail(unit)

    host.units.job = job
    assert host.rollout.restart("a", host.units) is State.CHANGING
    attempt = host.store.attempt("a")
    assert attempt is not None
    assert attempt.outcome is Outcome.RESTARTING
    assert host.current().generation == 2


def test_a_launch_that_is_never_reported_is_waited_for_until_its_time(host: Host) -> None:
    """Then it counts by its evidence, and the record says what lacks."""

    def job(unit: str) -> str:
        host.loop._restart(unit)
        (stamp_path("a", host.loop.top / "run")).unlink()
        return "done"

    host.units.job = job
    assert host.hasty().restart("a", host.units) is State.IN_STEP
    assert NOT_REPORTED in host.messages()


def test_a_refused_job_is_a_failure_and_a_lost_bus_is_an_error(host: Host) -> None:
    """What systemd refuses, it says why; without systemd there is nothing to judge."""

    def refuse(_: str) -> str:
        raise BusError("the unit is masked", hint="unmask it")

    host.units.job = refuse
    state = host.rollout.restart("a", host.units)
    attempt = host.store.attempt("a")
    assert state is State.FAILED
    assert attempt is not None
    assert "the unit is masked" in attempt.reason


@pytest.mark.parametrize(
    ("result", "state", "events"),
    [
        ("done", State.IN_STEP, [Event.RESTARTED]),
        ("failed", State.FAILED, [Event.RESTART_FAILED, Event.ROLLED_BACK]),
        ("canceled", State.CHANGING, []),
    ],
)
def test_health_is_asked_for_until_it_is_known(
    checked: Host, result: str, state: State, events: list[Event]
) -> None:
    """A VM that was restarted before the agent ended is found healthy by its check, or put back."""
    checked.loop.start_vm("a")
    attempt = checked.note(order=ORDER, before="f" * 32)
    asked: list[str] = []

    def health(unit: str) -> str:
        asked.append(unit)
        checked.now += 2.5
        return result

    checked.units.health = health
    assert checked.timed().restart("a", checked.units) is state
    assert asked == [CHECK]
    if result == "done":
        assert "restarted in 2.5 s" in "".join("".join(fields) for fields in checked.loop.sent)
    records = checked.records()
    assert [event for event, *_ in records] == events
    assert {run for *_, run in records} <= {ORDER}
    assert {each[:3] for each in records} == {(event, "a", A) for event in events}
    left = checked.store.attempt("a")
    if result == "canceled":
        assert left == attempt
    elif result == "failed":
        assert left is not None
        assert f"{CHECK} ended with 'failed'" in left.reason


@pytest.mark.parametrize("act", ["stop", "restart", "job", "end"])
def test_a_vm_that_changes_while_its_health_is_checked_is_not_judged(checked: Host, act: str) -> None:
    """Somebody has stopped or restarted it, or the agent ends: a later look checks it again."""
    acts: dict[str, Callable[[], None]] = {
        "stop": lambda: checked.loop.stop_vm("a"),
        "restart": lambda: checked.loop.start_vm("a"),
        "job": lambda: checked.units.set(A, has_job=True),
        "end": checked.rollout.stop.set,
    }

    def health(_: str) -> str:
        acts[act]()
        return "failed"

    checked.units.health = health
    assert checked.rollout.restart("a", checked.units) is State.CHANGING
    attempt = checked.store.attempt("a")
    assert attempt is not None
    assert attempt.outcome is Outcome.RESTARTING
    assert checked.current().generation == 2


def test_what_lacks_after_a_restart_is_in_its_record(host: Host) -> None:
    """No report, no evidence: it is then written down what the VM is taken to run."""
    vm, manifest = host.look("a").observed[0].vm, host.current()
    unit = host.units.unit(A)
    assert host.rollout.restarter._lacks(vm, manifest, unit) == ""
    other = replace(unit, invocation_id="e" * 32)
    said = host.rollout.restarter._lacks(vm, manifest, other)
    assert NOT_REPORTED in said
    assert said.startswith("; ")
    assert said.endswith(A)
    assert host.store.assumed("a") == Assumed("e" * 32, manifest.digest, 2)
    host.store.assume("a", Assumed("d" * 32, manifest.digest, 1))
    assert A not in host.rollout.restarter._lacks(vm, manifest, replace(other, active="failed"))
    assert host.store.assumed("a") == Assumed("d" * 32, manifest.digest, 1)


def test_a_restart_that_ended_well_unseen_is_let_go_of(host: Host) -> None:
    """Its record says what the VM was started on, under the order; nothing is touched that has changed."""
    host.loop.start_vm("a")
    attempt = host.note(order=ORDER, before="f" * 32)
    look = host.look()
    assert [each.forget for each in look.decisions] == [True, False]
    host.store.record_attempt("a", msgspec.structs.replace(attempt, order=""))
    host.rollout.forget_ended(look)
    assert host.store.attempt("a") is not None
    host.store.record_attempt("a", attempt)
    had, done = threading.Event(), threading.Event()

    def hold() -> None:
        with host.store.lock(rollout_lock("a")):
            had.set()
            done.wait(20)

    holder = threading.Thread(target=hold)
    holder.start()
    assert had.wait(20)
    host.rollout.forget_ended(look)
    assert host.store.attempt("a") == attempt
    done.set()
    holder.join()
    assert host.records() == []
    other = host.note("b", order=ORDER)
    host.rollout.forget_ended(look)
    assert host.store.attempt("a") is None
    assert host.store.attempt("b") == other
    assert host.records() == [(Event.RESTARTED, "a", A, "2", ORDER)]
    with pytest.raises(ValueError, match="zip"):
        host.rollout.forget_ended(replace(look, observed=()))


def test_a_restart_that_somebody_s_stop_ended_is_let_go_of_without_a_record(host: Host) -> None:
    """Nothing has come of it."""
    host.note()
    host.loop.stop_vm("a")
    host.rollout.forget_ended(host.look("a"))
    assert host.store.attempt("a") is None
    assert host.records() == []


def test_the_generation_to_go_back_to_is_what_the_vm_last_ran_well(host: Host) -> None:
    """What runs; or, where its restart went wrong or never began, what that would have gone back to."""
    (now,) = host.look("a").observed
    runs = now.runs
    assert runs is not None
    invocation, new = runs.invocation_id, host.current().digest
    cases: list[tuple[Attempt | None, bool, int]] = [
        (None, True, 1),
        (None, False, 0),
        (Attempt(runs.digest, Outcome.FAILED, previous=7), True, 7),
        (Attempt(new, Outcome.FAILED, previous=7), False, 7),
        (Attempt(new, Outcome.RESTARTING, previous=2, before=invocation), True, 2),
        (Attempt(new, Outcome.RESTARTING, previous=9, before=invocation), True, 1),
        (Attempt(new, Outcome.RESTARTING, previous=2, before="f" * 32), True, 1),
    ]
    for attempt, is_known, previous in cases:
        seen = replace(now, attempt=attempt, evidence=now.evidence if is_known else None)
        assert generation_before(host.store, seen) == previous, attempt


def test_a_vm_is_worked_on_by_one_at_a_time(host: Host) -> None:
    """Its own lock is held from before it is looked at until the end, by rotations and by orders."""
    held: list[bool] = []

    def look(_: str = "") -> bool:
        with host.store.lock(rollout_lock("a"), wait=False) as had:
            held.append(not had)
        return True

    def job(unit: str) -> str:
        look()
        return host.loop._restart(unit)

    host.units.job = job
    host.rollout.restart("a", host.units)
    host.rollout.rotate("a", host.units, 0.0, ORDER, look)
    host.rollout.roll_back("a", host.units, ORDER, look)
    assert held == [True] * len(held)
    assert len(held) >= 4


def test_an_order_stands_for_what_was_published_when_it_was_done(host: Host) -> None:
    """Where something newer was never sealed in time, the VM stays back until yet another change."""
    host.loop.publish(x="three")
    for _ in range(3):
        assert host.rollout.roll_back("a", host.units, ORDER) is None
    assert host.rollout.roll_back("a", host.units, ORDER) is State.ROLLED_BACK
    attempt, desired = host.store.attempt("a"), host.look("a").observed[0].desired
    assert attempt is not None
    assert isinstance(desired, Desired)
    assert attempt.digest == desired.digest


def test_restarts_are_let_go_of_one_by_one(host: Host) -> None:
    """A VM that has nothing to let go of, or has changed meanwhile, keeps no other from it."""
    for changed in (False, True):
        for vm in "ab":
            host.loop.start_vm(vm)
            host.note(vm, before="f" * 32)
        if not changed:
            host.store.record_attempt("a", None)
        look = host.look()
        assert [each.forget for each in look.decisions] == [changed, True]
        if changed:
            host.note("a", before="e" * 32)
        host.rollout.forget_ended(look)
        assert host.store.attempt("b") is None


def test_a_vm_that_its_restart_has_stopped_is_started_on_the_way_back(host: Host) -> None:
    """It looks as if an operator had stopped it; systemd's word for the job tells that none has."""

    def job(unit: str) -> str:
        if host.current().generation == 1:
            return host.loop._restart(unit)
        host.loop.stop_vm("a")
        return "dependency"

    host.units.job = job
    assert host.rollout.restart("a", host.units) is State.FAILED
    assert host.units.unit(A).is_active
    assert host.current().generation == 1


def test_the_way_back_waits_where_the_vm_would_not_start_again(checked: Host) -> None:
    """It is up, though it is not healthy: it is not taken down for nothing."""

    def health(_: str) -> str:
        checked.loop.key.chmod(0o600)
        return "failed"

    checked.units.health = health
    assert checked.rollout.restart("a", checked.units) is State.REFUSED
    assert checked.units.restarts == [A]
    attempt = checked.store.attempt("a")
    assert attempt is not None
    assert attempt.outcome is Outcome.FAILED


def test_an_agent_that_stops_on_the_way_back_leaves_it_to_the_next(host: Host) -> None:
    """What has failed stays noted, so that the next agent goes on from there."""

    def job(unit: str) -> str:
        if host.current().generation == 1:
            host.rollout.stop.set()
            return host.loop._restart(unit)
        return host.fail(unit)

    host.units.job = job
    assert host.rollout.restart("a", host.units) is State.CHANGING
    attempt = host.store.attempt("a")
    assert attempt is not None
    assert attempt.outcome is Outcome.FAILED
    assert Event.ROLLED_BACK not in {event for event, *_ in host.records()}


def test_what_the_vm_was_started_on_is_what_is_recorded(host: Host) -> None:
    """Something newer may have been sealed while it was down."""

    def job(unit: str) -> str:
        host.change("three")
        return host.loop._restart(unit)

    host.units.job = job
    assert host.rollout.restart("a", host.units) is State.IN_STEP
    of_restarts = [each for each in host.records() if each[0] in {Event.RESTART_ASKED, Event.RESTARTED}]
    assert [each[3] for each in of_restarts] == ["2", "3"]


def test_a_health_check_that_systemd_refuses_is_not_passed(checked: Host) -> None:
    """Its reason is what systemd says."""

    def refuse(_: str) -> str:
        raise BusError("the check is masked", hint="unmask it")

    checked.units.health = refuse
    assert checked.rollout.restart("a", checked.units) is State.FAILED
    attempt = checked.store.attempt("a")
    assert attempt is not None
    assert "the check is masked" in attempt.reason


@pytest.mark.parametrize(("kept", "state"), [("none", State.IN_STEP), ("an older one's", State.FAILED)])
def test_a_restart_is_judged_by_its_evidence(host: Host, kept: str, state: State) -> None:
    """Evidence of an older generation is a failure. Without any, what is current is written down."""
    manifest, old = host.current(), host.store.generation("a", 1)
    assert old is not None

    def job(unit: str) -> str:
        host.loop._restart(unit)
        if host.current().generation == manifest.generation:
            name = evidence_name("a", host.units.unit(unit).invocation_id)
            path = host.loop.top / "run" / EVIDENCE_PARENT / name
            path.unlink() if kept == "none" else path.write_bytes(old.to_bytes())
        return "done"

    host.units.job = job
    assert host.hasty().restart("a", host.units) is state
    if kept == "none":
        invocation = host.units.unit(A).invocation_id
        assert host.store.assumed("a") == Assumed(invocation, manifest.digest, manifest.generation)


def test_a_job_that_is_done_without_a_start_is_a_failure(host: Host) -> None:
    """The invocation is the one from before: nothing has been restarted."""
    host.units.job = lambda _: "done"
    assert host.hasty().restart("a", host.units) is State.FAILED
    assert [event for event, *_ in host.records()][:2] == [Event.RESTART_ASKED, Event.RESTART_FAILED]
    attempt = host.store.attempt("a")
    assert attempt is not None
    assert attempt.reason.startswith("its unit was not restarted")
