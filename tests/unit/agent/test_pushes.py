# SPDX-License-Identifier: MIT
"""Pushes to live VMs: when, what is noted, what counts as proof, and what follows from a failure.

Store, source, key, evidence, decisions and records are real. systemd is a model: a test says how pushes end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from credferry.agent.audit.events import Event
from credferry.agent.errors import StoreError
from credferry.agent.reconcile.decision import State
from credferry.agent.reconcile.status import Arrival, standing, steps
from credferry.agent.store.records import Assumed, Attempt, Outcome, Pushed, Way
from credferry.launcher.errors import Exit
from credferry.launcher.handoff import EVIDENCE_PARENT, PUSHED_PARENT, evidence_name
from tests.unit.agent.test_rollout import ORDER, A, B, Host, hosted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import Any

    from credferry.agent.reconcile.decision import Decision

PUSH = "credferry-push@a.service"
LATER = 1e12
"""A moment of an order that comes after every start."""
BOTH = """
[vms.a]
live = true
[vms.a.credentials]
X = { secret = "x" }
BOOT = { secret = "boot", live = false, required = false }
[vms.b]
live = true
[vms.b.credentials]
X = { secret = "x" }
"""
HOLDS = BOTH.replace("[vms.a]\n", '[vms.a]\non_live_failure = "hold"\n')
CHECKED = BOTH.replace("[vms.a]\n", '[vms.a]\nhealth = ["/bin/true"]\n')


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """Two live VMs that are due."""
    yield from hosted(tmp_path, BOTH)


@pytest.fixture
def patient(tmp_path: Path) -> Iterator[Host]:
    """The same, where a push is tried three times."""
    yield from hosted(tmp_path, BOTH, "attempts = 3")


@pytest.fixture
def holding(tmp_path: Path) -> Iterator[Host]:
    """The same, where VM a stays as it is if a push fails."""
    yield from hosted(tmp_path, HOLDS)


@pytest.fixture
def checked(tmp_path: Path) -> Iterator[Host]:
    """The same, where VM a has a health check."""
    yield from hosted(tmp_path, CHECKED)


def decided(host: Host, vm: str = "a") -> Decision:
    """What a look decides."""
    return host.look(vm).decisions[0]


def pushed(host: Host) -> Pushed | None:
    """What is noted of pushes to VM a."""
    return host.store.pushed("a")


def told(host: Host) -> list[tuple[Event, str]]:
    """The records about VM a since the last call: event and generation."""
    return [(event, generation) for event, vm, _, generation, _ in host.records() if vm == "a"]


def fail(host: Host, status: int = Exit.GUEST, result: str = "exit-code") -> None:
    """Have each push fail with a status of the launcher."""
    host.units.push = host.loop.fail_push(status, result)


class DeadError(Exception):
    """The agent dies here."""


def dies(_unit: str) -> str:
    """The agent dies while it waits for a push."""
    raise DeadError


def test_a_live_vm_gets_a_push_and_stays_up(host: Host) -> None:
    """What is asked is noted before; what is proved is noted after, for the same invocation."""
    before, run = host.units.unit(A).invocation_id, host.current().run
    runs = host.look("a").observed[0].runs
    assert runs is not None
    noted: list[tuple[Attempt | None, Pushed | None]] = []

    def push(unit: str) -> str:
        noted.append((host.store.attempt("a"), pushed(host)))
        return host.loop.push(unit)

    host.units.push = push
    assert (decided(host).state, decided(host).way) == (State.PUSH_DUE, Way.PUSH)
    assert host.rollout.restart("a", host.units) is State.IN_STEP
    digest = host.current().digest
    attempt = Attempt(digest, Outcome.RESTARTING, previous=1, run=run, before=before, way=Way.PUSH)
    assert noted == [(attempt, Pushed(before, runs.digest, 1, asked=2))]
    assert host.store.attempt("a") is None
    now = pushed(host)
    assert now is not None
    assert now.moment > 0
    assert msgspec.structs.replace(now, moment=0.0) == Pushed(before, digest, 2, run)
    assert told(host) == [(Event.PUSH_ASKED, "2"), (Event.PUSHED, "2")]
    assert (host.units.restarts, host.units.unit(A).invocation_id) == ([], before)
    assert decided(host).state is State.IN_STEP
    assert host.rollout.restart("a", host.units) is State.IN_STEP
    assert host.units.pushes == [PUSH]


def test_pushes_follow_one_another(host: Host) -> None:
    """Each brings the newest values, and the generation before it is what a rollback goes to."""
    for number in range(3, 9):
        host.rollout.restart("a", host.units)
        host.change(f"value {number}")
    assert host.rollout.restart("a", host.units) is State.IN_STEP
    now = pushed(host)
    assert now is not None
    assert now.generation == 8
    assert host.rollout.roll_back("a", host.units, ORDER) is State.ROLLED_BACK
    assert host.units.restarts == [A]
    runs = host.look("a").observed[0].runs
    assert runs is not None
    assert runs.generation == 7


def test_a_start_makes_a_push_void(host: Host) -> None:
    """What a VM was started with counts, though it got something newer by a push before."""
    host.rollout.restart("a", host.units)
    host.store.revert("a", 1)
    host.loop.start_vm("a")
    runs = host.look("a").observed[0].runs
    assert runs is not None
    assert runs.generation == 1


def test_a_vm_that_is_not_configured_as_live_is_restarted(tmp_path: Path) -> None:
    """Without a reason, as nobody expects a push."""
    for host in hosted(tmp_path, BOTH.replace("live = true", "")):
        assert (decided(host).way, decided(host).why) == (Way.RESTART, "")


def test_a_guest_that_was_started_without_a_manifest_is_restarted(tmp_path: Path) -> None:
    """The VM became live only after its start. The next change is pushed."""
    for host in hosted(tmp_path, BOTH.replace("live = true", "")):
        host.loop.configure(BOTH)
        host.loop.service._reload()
        host.seal()
        assert decided(host).way is Way.RESTART
        assert "started without a manifest" in decided(host).why
        assert host.rollout.restart("a", host.units) is State.IN_STEP
        host.change("three")
        assert decided(host).way is Way.PUSH


def test_a_start_without_evidence_is_followed_by_a_restart(host: Host) -> None:
    """It is not known whether the guest takes a push."""
    evidence = host.look("a").observed[0].evidence
    assert evidence is not None
    host.store.assume("a", Assumed(evidence.invocation_id, evidence.digest, 1))
    (host.loop.top / "run" / EVIDENCE_PARENT / evidence_name("a", evidence.invocation_id)).unlink()
    host.loop.service._reload()
    assert (decided(host).way, decided(host).why) == (Way.RESTART, "there is no evidence of its start")


def test_what_a_guest_reads_only_when_it_boots_needs_a_restart(host: Host) -> None:
    """A change of a credential with `live = false`: by itself, or beside others."""
    host.loop.publish(x="two", boot="b")
    host.seal()
    decision = decided(host)
    assert (decision.way, decision.why) == (Way.RESTART, "its guest reads BOOT only when it boots")
    assert decided(host, "b").way is Way.PUSH
    host.rollout.restart("a", host.units)
    host.loop.publish(x="three", boot="b")
    host.seal()
    assert decided(host).way is Way.PUSH
    host.loop.publish(x="three")
    host.seal()
    assert decided(host).way is Way.RESTART


@pytest.mark.parametrize(
    ("status", "result"),
    [
        (Exit.GUEST, "exit-code"),
        (Exit.CREDENTIALS, "exit-code"),
        (Exit.HYPERVISOR, "exit-code"),
        (Exit.LATER, "exit-code"),
        (Exit.UNKNOWN, "exit-code"),
        (243, "exit-code"),
        (1, "exit-code"),
        (0, "timeout"),
    ],
)
def test_a_push_that_cannot_be_is_followed_by_a_restart(host: Host, status: int, result: str) -> None:
    """The next look decides on it, with all that holds for restarts; the reason is shown."""
    fail(host, status, result)
    assert host.rollout.restart("a", host.units) is State.CHANGING
    assert told(host) == [(Event.PUSH_ASKED, "2"), (Event.PUSH_FAILED, "2")]
    decision = decided(host)
    assert (decision.state, decision.way) == (State.RESTART_DUE, Way.RESTART)
    assert "journalctl -u credferry-push@a.service" in decision.why
    assert host.rollout.restart("a", host.units) is State.IN_STEP
    assert (host.units.pushes, host.units.restarts) == ([PUSH], [A])
    assert host.store.attempt("a") is None
    assert decided(host).state is State.IN_STEP


@pytest.mark.parametrize("status", [Exit.LATER, Exit.UNKNOWN])
def test_what_may_pass_is_tried_again(patient: Host, status: Exit) -> None:
    """With the pauses of a restart, and as often."""
    results: Iterator[Callable[[str], str]] = iter([patient.loop.fail_push(status)] * 2)

    def push(unit: str) -> str:
        return next(results, patient.loop.push)(unit)

    patient.units.push = push
    assert patient.rollout.restart("a", patient.units) is State.IN_STEP
    assert patient.units.pushes == [PUSH] * 3
    assert told(patient)[-1] == (Event.PUSHED, "2")


def test_what_the_guest_refuses_is_not_tried_again(patient: Host) -> None:
    """Another push would be refused as well."""
    fail(patient)
    assert patient.rollout.restart("a", patient.units) is State.CHANGING
    assert patient.units.pushes == [PUSH]


def test_a_vm_can_be_left_as_it_is(holding: Host) -> None:
    """With `hold`, the VM is shown as failed until its secrets change, or an operator has it tried again."""
    fail(holding)
    assert holding.rollout.restart("a", holding.units) is State.FAILED
    decision = decided(holding)
    assert (decision.state, decision.needs_rollout) == (State.FAILED, False)
    assert "its guest refused the push" in decision.reasons[0]
    assert holding.rollout.restart("b", holding.units) is not State.HALTED
    holding.change("three")
    assert decided(holding).way is Way.PUSH
    fail(holding)
    holding.rollout.restart("a", holding.units)
    attempt = holding.store.attempt("a")
    assert attempt is not None
    holding.store.record_attempt("a", msgspec.structs.replace(attempt, outcome=Outcome.RETRY))
    assert decided(holding).way is Way.PUSH
    assert holding.units.restarts == []


def test_values_that_a_unit_in_the_guest_cannot_use_have_failed(host: Host) -> None:
    """What ran before is current again, nothing is restarted, and the rollout of the change stops."""
    fail(host, Exit.UNDONE)
    before = host.units.unit(A).invocation_id
    assert host.rollout.restart("a", host.units) is State.FAILED
    assert host.current().generation == 1
    attempt = host.store.attempt("a")
    assert attempt is not None
    assert (attempt.outcome, attempt.way) == (Outcome.ROLLED_BACK, Way.PUSH)
    assert (host.units.restarts, host.units.unit(A).invocation_id) == ([], before)
    assert told(host) == [(Event.PUSH_ASKED, "2"), (Event.PUSH_FAILED, "2"), (Event.ROLLED_BACK, "1")]
    assert (decided(host).state, decided(host).needs_rollout) == (State.FAILED, False)
    assert host.rollout.restart("b", host.units) is State.HALTED
    host.units.push = host.loop.push
    host.change("three")
    assert decided(host).way is Way.PUSH
    assert host.rollout.restart("a", host.units) is State.IN_STEP
    assert host.units.restarts == []


def test_a_vm_that_goes_down_after_a_failed_push_is_not_started(host: Host) -> None:
    """The agent did not take it down. Its record of the push says nothing else."""
    for status in (Exit.UNDONE, Exit.GUEST):
        fail(host, status)
        host.rollout.restart("a", host.units)
        host.fail(A)
        assert not decided(host).needs_rollout
        host.change(f"after {status}")
        assert not decided(host).needs_rollout
        host.loop.start_vm("a")
        host.loop.service._session.rollout.forget_ended(host.look("a"))
        host.change(f"before the next one than {status}")
    assert host.units.restarts == []


def test_a_job_that_joins_an_older_push_proves_nothing(host: Host) -> None:
    """A done job whose proof is of another generation is asked for again."""
    first = host.store.generation("a", 1)
    assert first is not None

    def joined(_unit: str) -> str:
        host.units.push = host.loop.push
        directory = host.loop.top / "run" / PUSHED_PARENT
        directory.mkdir(parents=True)
        for name in ("a@before", "a"):
            (directory / name).write_bytes(first.to_bytes())
        return "done"

    host.units.push = joined
    assert host.rollout.restart("a", host.units) is State.IN_STEP
    assert host.units.pushes == [PUSH, PUSH]
    assert told(host) == [(Event.PUSH_ASKED, "2"), (Event.PUSHED, "2")]


def test_a_done_job_without_a_proof_proves_nothing(host: Host) -> None:
    """Whatever systemd says: a restart follows."""
    host.units.push = lambda _unit: "done"
    assert host.rollout.restart("a", host.units) is State.CHANGING
    assert decided(host).restart
    assert told(host)[-1] == (Event.PUSH_FAILED, "2")


@pytest.mark.parametrize("other", ["a@before", "a"])
def test_a_proof_counts_only_if_nothing_changed_during_the_push(host: Host, other: str) -> None:
    """PID 1 may open the generation anew for each command of the unit, and then prove another one."""
    first = host.store.generation("a", 1)
    assert first is not None

    def push(unit: str) -> str:
        result = host.loop.push(unit)
        (host.loop.top / "run" / PUSHED_PARENT / other).write_bytes(first.to_bytes())
        return result

    host.units.push = push
    assert host.rollout.restart("a", host.units) is State.CHANGING
    assert decided(host).restart


def test_a_vm_that_starts_during_its_push_is_judged_by_its_start(host: Host) -> None:
    """A proof then says nothing about the new invocation."""

    def push(unit: str) -> str:
        host.store.revert("a", 1)
        host.loop.start_vm("a")
        host.store.revert("a", 2)
        return host.loop.push(unit)

    host.units.push = push
    assert host.rollout.restart("a", host.units) is State.CHANGING
    assert host.store.attempt("a") is None
    assert decided(host).way is Way.PUSH
    assert Event.PUSHED not in [event for event, _ in told(host)]


def test_an_agent_that_dies_during_a_push_pushes_once_more(host: Host) -> None:
    """It does not know what the guest holds. A guest that has the generation already says so at once."""
    host.units.push = dies
    with pytest.raises(DeadError):
        host.rollout.restart("a", host.units)
    host.units.push = host.loop.push
    host.loop.push(PUSH)
    assert decided(host).way is Way.PUSH
    assert host.rollout.restart("a", host.units) is State.IN_STEP
    assert (host.units.pushes, host.units.restarts) == ([PUSH, PUSH], [])


def test_values_that_go_back_during_a_crash_still_reach_the_guest(host: Host) -> None:
    """The evidence says that the VM runs them, but the guest may hold what the unfinished push brought."""
    host.units.push = dies
    with pytest.raises(DeadError):
        host.rollout.restart("a", host.units)
    host.change("one")
    runs = host.look("a").observed[0].runs
    assert runs is not None
    assert runs.digest == host.current().digest
    assert decided(host).way is Way.PUSH
    host.units.push = host.loop.push
    assert host.rollout.restart("a", host.units) is State.IN_STEP
    now = pushed(host)
    assert now is not None
    assert (now.generation, now.asked) == (3, 0)


def test_a_refusal_after_a_push_without_an_end_does_not_end_the_doubt(host: Host) -> None:
    """The guest may hold what the first push brought: only a restart makes it known."""
    host.units.push = dies
    with pytest.raises(DeadError):
        host.rollout.restart("a", host.units)
    host.change("one")
    fail(host)
    host.rollout.restart("a", host.units)
    assert decided(host).restart
    assert host.rollout.restart("a", host.units) is State.IN_STEP
    assert host.units.restarts == [A]


def test_a_unit_that_fails_while_what_the_guest_holds_is_unknown(host: Host) -> None:
    """Only a restart brings the VM back to what it ran before."""
    host.units.push = dies
    with pytest.raises(DeadError):
        host.rollout.restart("a", host.units)
    host.change("three")
    fail(host, Exit.UNDONE)
    assert host.rollout.restart("a", host.units) is State.FAILED
    assert host.units.restarts == [A]
    runs = host.look("a").observed[0].runs
    assert runs is not None
    assert runs.generation == 1


def test_a_proof_that_cannot_be_noted_does_not_count(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk, the agent pushes once more when there is room."""
    real = type(host.store).record_pushed

    def full(store: Any, vm: str, noted: Pushed | None) -> None:  # noqa: ANN401 (a store)
        if noted is not None and not noted.asked:
            raise StoreError("full", hint="")
        real(store, vm, noted)

    with monkeypatch.context() as patched:
        patched.setattr(type(host.store), "record_pushed", full)
        with pytest.raises(StoreError):
            host.rollout.restart("a", host.units)
    assert decided(host).way is Way.PUSH
    assert host.rollout.restart("a", host.units) is State.IN_STEP


def test_a_pushed_vm_has_its_health_checked(checked: Host) -> None:
    """An unhealthy VM goes back by a restart: its guest takes no older generation."""
    checked.units.health = lambda _unit: (
        "failed" if pushed(checked) and not checked.units.restarts else "done"
    )
    assert checked.rollout.restart("a", checked.units) is State.FAILED
    assert (checked.units.pushes, checked.units.restarts) == ([PUSH], [A])
    assert checked.current().generation == 1
    assert told(checked) == [(Event.PUSH_ASKED, "2"), (Event.PUSH_FAILED, "2"), (Event.ROLLED_BACK, "1")]


def test_a_health_check_that_a_crash_prevented_is_made_up_for(checked: Host) -> None:
    """No push is repeated for it."""
    checked.units.health = dies
    with pytest.raises(DeadError):
        checked.rollout.restart("a", checked.units)
    checked.units.health = lambda _unit: "done"
    assert decided(checked).prove
    assert checked.rollout.restart("a", checked.units) is State.IN_STEP
    assert checked.units.pushes == [PUSH]
    assert told(checked) == [(Event.PUSH_ASKED, "2"), (Event.PUSHED, "2")]


def test_a_push_that_ended_unseen_is_recorded(host: Host) -> None:
    """The agent died after it had noted the proof."""
    manifest, unit = host.current(), host.units.unit(A)
    host.note(way=Way.PUSH, before=unit.invocation_id)
    host.store.record_pushed("a", Pushed(unit.invocation_id, manifest.digest, 2, manifest.run, 1.0))
    host.rollout.forget_ended(host.look("a"))
    assert told(host) == [(Event.PUSHED, "2")]
    assert host.store.attempt("a") is None


def test_an_order_pushes_what_is_live(host: Host) -> None:
    """Also what is in step, and a restart follows at once where the push fails."""
    assert host.rollout.rotate("a", host.units, 0.0, ORDER) is State.IN_STEP
    assert host.rollout.rotate("a", host.units, LATER, ORDER) is State.IN_STEP
    assert (host.units.pushes, host.units.restarts) == ([PUSH, PUSH], [])
    assert {run for *_, run in host.records()} == {ORDER}
    fail(host)
    assert host.rollout.rotate("a", host.units, LATER, ORDER) is State.IN_STEP
    assert host.units.restarts == [A]
    assert {run for *_, run in host.records()} == {ORDER}


def test_an_order_can_ask_for_a_restart(host: Host) -> None:
    """Though the VM is live."""
    assert host.rollout.rotate("a", host.units, LATER, ORDER, way=Way.RESTART) is State.IN_STEP
    assert (host.units.pushes, host.units.restarts) == ([], [A])


def test_nothing_is_pushed_that_pid_1_could_not_open(host: Host) -> None:
    """As before a restart. But what only a start of the VM needs does not matter."""
    host.units.set(A, needs_reload=True)
    assert decided(host).way is Way.PUSH
    host.loop.key.chmod(0o600)
    decision = decided(host)
    assert (decision.state, decision.unready) == (State.REFUSED, True)
    assert "a push to it would fail" in decision.reasons[0]
    assert host.rollout.restart("a", host.units) is State.REFUSED
    assert host.units.pushes == []


def test_the_status_tells_how_a_generation_got_there_and_what_is_next(host: Host) -> None:
    """By a start or a push; unknown while a push has no known end."""

    def shown() -> tuple[Arrival | None, Way | None, str, str]:
        look = host.look("a")
        now = standing(look.observed[0], look.decisions[0], host.store)
        return now.arrived, now.next_way, now.next_reason, now.last_result

    assert shown() == (Arrival.START, Way.PUSH, "", "started on generation 1")
    assert steps(decided(host)) == [f"push to the guest of {A}"]
    host.rollout.restart("a", host.units)
    assert shown() == (Arrival.PUSH, Way.PUSH, "", "took generation 2 by a push")
    host.change("three")
    host.units.push = dies
    with pytest.raises(DeadError):
        host.rollout.restart("a", host.units)
    assert shown() == (None, Way.PUSH, "", "its push is under way")
    fail(host)
    host.rollout.restart("a", host.units)
    why = (
        "its guest refused the push: see journalctl -u credferry-push@a.service; "
        "in the guest, see journalctl -u 'credferry-receive@*'"
    )
    assert shown() == (None, Way.RESTART, why, why)
    assert steps(decided(host)) == [f"restart {A} ({why})"]
    host.loop.stop_vm("a")
    assert shown()[:3] == (None, None, "")


def test_another_key_of_the_host_keeps_what_was_pushed(host: Host) -> None:
    """What a push brought is known by the new key, too: nothing is pushed or restarted for it."""
    host.rollout.restart("a", host.units)
    before = pushed(host)
    host.loop.new_key()
    host.loop.turn()
    now = pushed(host)
    assert before is not None
    assert now is not None
    assert (now.generation, now.digest != before.digest) == (2, True)
    assert decided(host).state is State.IN_STEP
    host.change("three")
    assert decided(host).way is Way.PUSH


def test_windows_and_rates_can_hold_for_restarts_only(tmp_path: Path) -> None:
    """With `live_windows = false`, a push waits for neither, and does not count for the rate."""
    text = BOTH.replace("[vms.a]\n", "[vms.a]\nrestarts_per_hour = 1\n")
    for is_free in (False, True):
        top = tmp_path / str(is_free)
        top.mkdir()
        for host in hosted(top, text, "live_windows = false" if is_free else ""):
            assert host.rollout.restart("a", host.units) is State.IN_STEP
            host.change("three")
            wanted = State.IN_STEP if is_free else State.WAITING
            assert host.rollout.restart("a", host.units) is wanted
            assert len(host.store.restarts("a")) == (0 if is_free else 1)
            host.change("four")
            fail(host)
            host.rollout.restart("a", host.units)
            if is_free:
                assert host.rollout.restart("a", host.units) is State.IN_STEP
                assert (host.units.restarts, len(host.store.restarts("a"))) == ([A], 1)


def test_a_second_vm_is_not_touched(host: Host) -> None:
    """A push concerns its VM alone."""
    host.rollout.restart("a", host.units)
    assert host.store.pushed("b") is None
    assert decided(host, "b").way is Way.PUSH
    assert host.units.unit(B).is_active
