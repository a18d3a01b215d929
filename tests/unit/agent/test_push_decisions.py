# SPDX-License-Identifier: MIT
"""What is decided about a live VM at the edges: units that are down, records of a failed push, obstacles."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from credferry.agent.errors import OrderError
from credferry.agent.reconcile.decision import State
from credferry.agent.reconcile.desired import Refused
from credferry.agent.reconcile.observed import must_roll_back
from credferry.agent.reconcile.readiness import Obstructed
from credferry.agent.reconcile.way import Choice, choose
from credferry.agent.store.records import Attempt, Outcome, Way
from tests.unit.agent.test_pushes import BOTH, HOLDS, LATER, PUSH, fail
from tests.unit.agent.test_rollout import ORDER, A, Host, hosted

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """Two live VMs that are due."""
    yield from hosted(tmp_path, BOTH)


def test_only_a_vm_that_is_up_gets_a_push(host: Host) -> None:
    """There is no guest otherwise, or systemd has said nothing of it."""
    now, manifest = host.look("a").observed[0], host.current()
    assert now.unit is not None
    assert choose(now, manifest.digest, ()).way is Way.PUSH
    down = replace(now, unit=replace(now.unit, active="inactive"))
    for other in (down, replace(now, unit=None)):
        assert choose(other, manifest.digest, ()) == Choice(Way.RESTART)


def test_a_guest_gets_a_new_key_only_when_it_starts(host: Host) -> None:
    """Where only the key that the host gives it has changed, it could not open what is pushed."""
    now, ran = host.look("a").observed[0], host.current()
    keyed = msgspec.structs.replace(now.vm, guest_key=True, guest_machine_id="1" * 32)
    now, rotated = replace(now, ran=ran), "0" * 64
    found = choose(replace(now, vm=keyed), rotated, ran.credentials)
    assert found == Choice(Way.RESTART, "its guest gets its new key only when it starts")
    changed = [each.but(fingerprint="f" * 16) for each in ran.credentials]
    assert choose(replace(now, vm=keyed), rotated, changed).way is Way.PUSH
    assert choose(replace(now, vm=keyed), ran.digest, ran.credentials).way is Way.PUSH
    assert choose(now, rotated, ran.credentials).way is Way.PUSH, "the key of a guest that has its own"


def test_all_that_is_read_at_boot_is_named(tmp_path: Path) -> None:
    """Each credential with `live = false` that has changed."""
    more = BOTH.replace("[vms.b]\n", 'ALSO = { secret = "also", live = false, required = false }\n[vms.b]\n')
    for host in hosted(tmp_path, more):
        host.loop.publish(x="two", boot="b", also="a")
        host.seal()
        assert host.look("a").decisions[0].why == "its guest reads ALSO, BOOT only when it boots"


def test_a_vm_whose_generations_cannot_be_listed_hides_no_other(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look goes on where the disk fails. It takes all that is read at boot for changed."""
    host.loop.publish(x="two")
    host.seal()
    generations = host.loop.top / "state/vms/a/generations"
    (generations / "1").rename(host.loop.top / "gone")
    iterdir = Path.iterdir

    def failing(path: Path) -> Iterator[Path]:
        if path == generations:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", failing)
    assert host.look("a").decisions[0].why == "its guest reads BOOT only when it boots"
    assert host.look("a", "b").decisions[1].way is Way.PUSH


def test_an_order_pushes_too_where_what_is_read_at_boot_stays(host: Host) -> None:
    """The guest has it since its start. Where it changes, the order restarts the VM."""
    host.loop.publish(x="two", boot="b")
    host.seal()
    assert host.rollout.rotate("a", host.units, LATER, ORDER) is State.IN_STEP
    assert (host.units.pushes, host.units.restarts) == ([], [A])
    host.units.push = host.loop.push
    host.loop.publish(x="three", boot="b")
    host.seal()
    assert host.rollout.rotate("a", host.units, LATER, ORDER) is State.IN_STEP
    assert (host.units.pushes, host.units.restarts) == ([PUSH], [A])


@pytest.mark.parametrize(
    ("way", "outcome", "previous", "is_up", "must"),
    [
        (Way.PUSH, Outcome.FAILED, 1, True, True),
        (Way.PUSH, Outcome.FAILED, 1, False, True),
        (Way.PUSH, Outcome.FAILED, 0, True, False),
        (Way.PUSH, Outcome.ROLLED_BACK, 1, True, False),
        (Way.PUSH, Outcome.RESTARTING, 1, False, False),
        (Way.RESTART, Outcome.FAILED, 1, True, False),
        (Way.RESTART, Outcome.FAILED, 1, False, True),
        (Way.RESTART, Outcome.RESTARTING, 1, False, True),
    ],
)
def test_what_must_be_rolled_back(
    host: Host, way: Way, outcome: Outcome, previous: int, is_up: bool, must: bool
) -> None:
    """The record of a failed push, so that no failed value stays current; a restart that left the VM down.

    Also where the source has lost what the VM needs.
    """
    now = host.look("a").observed[0]
    assert now.unit is not None
    unit = now.unit if is_up else replace(now.unit, active="failed", sub="failed", result="exit-code")
    attempt = Attempt(host.current().digest, outcome, previous=previous, way=way, before="f" * 32)
    now = replace(now, unit=unit, attempt=attempt, desired=Refused(("it is not published",)))
    assert must_roll_back(now, grace_over=True) is must


def test_a_push_needs_no_start_of_the_vms_own_unit(host: Host) -> None:
    """Files of that unit that systemd has not read keep no rotation and no order from a running guest."""
    host.units.push = host.loop.push
    host.units.set(A, needs_reload=True)
    assert host.rollout.restart("a", host.units) is State.IN_STEP
    host.change("three")
    assert host.rollout.rotate("a", host.units, LATER, ORDER) is State.IN_STEP
    assert (host.units.pushes, host.units.restarts) == ([PUSH, PUSH], [])


def test_an_order_whose_push_would_fail_is_refused(host: Host) -> None:
    """The message says that nothing is pushed, and why."""
    host.loop.key.chmod(0o600)
    with pytest.raises(OrderError, match=r"nothing is pushed, because that would fail: .*key"):
        host.rollout.rotate("a", host.units, LATER, ORDER)
    assert (host.units.pushes, host.units.restarts) == ([], [])


def test_a_failed_push_is_over_once_the_vm_has_the_values(host: Host) -> None:
    """A start of the VM by somebody else ends the record of a push that could not be."""
    attempt = Attempt(host.current().digest, Outcome.UNPUSHED, "refused", previous=1, way=Way.PUSH)
    host.store.record_attempt("a", msgspec.structs.replace(attempt, before=host.units.unit(A).invocation_id))
    assert not host.look("a").decisions[0].forget
    host.loop.start_vm("a")
    assert host.look("a").decisions[0].forget


def test_each_step_waits_for_the_vms_lock(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the loop's own clearing of records does not: a thread that works on the VM clears them itself."""
    waits: list[object] = []
    real = type(host.store).lock

    def lock(store: object, name: str, *, wait: bool = True) -> object:
        waits.append(wait)
        return real(store, name, wait=wait)  # type: ignore[arg-type]  # the store's own method

    monkeypatch.setattr(type(host.store), "lock", lock)
    host.rollout.restart("a", host.units)
    host.rollout.rotate("a", host.units, LATER, ORDER)
    host.rollout.roll_back("a", host.units, ORDER)
    assert set(waits) == {True}


def test_a_vm_that_is_left_as_it_is_still_gets_what_its_next_start_needs(tmp_path: Path) -> None:
    """With `hold`, the agent seals another delivery for the next start, and pushes and restarts nothing."""
    for host in hosted(tmp_path, HOLDS):
        fail(host)
        assert host.rollout.restart("a", host.units) is State.FAILED
        host.loop.configure(HOLDS.replace("[vms.a]\n", "[vms.a]\nguest_systemd = 260\n"))
        host.loop.service._reload()
        decision = host.look("a").decisions[0]
        assert (decision.vm.name, decision.state, decision.way) == ("a", State.FAILED, None)
        assert decision.seal is not None


def test_an_order_that_restarts_is_refused_where_the_vm_would_not_start_again(host: Host) -> None:
    """What is no obstacle for a push is one for a restart, as for any VM."""
    host.units.set(A, needs_reload=True)
    with pytest.raises(OrderError, match="not restarted, because it would not start again"):
        host.rollout.rotate("a", host.units, LATER, ORDER, way=Way.RESTART)
    assert (host.units.pushes, host.units.restarts) == ([], [])


@pytest.mark.parametrize(("live", "way"), [(True, Way.PUSH), (False, Way.RESTART)])
def test_right_before_it_acts_the_agent_looks_for_obstacles_to_just_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, live: bool, way: Way
) -> None:
    """An obstacle may have appeared since the look that decided."""
    for host in hosted(tmp_path, BOTH if live else BOTH.replace("live = true", "")):
        ways: list[object] = []

        def judge(*words: object, ways: list[object] = ways, is_final: bool) -> Obstructed:
            assert is_final
            ways.append(words[3])
            return Obstructed(("files of its unit have changed",))

        monkeypatch.setattr("credferry.agent.reconcile.observer.judge", judge)
        assert host.rollout.restart("a", host.units) is State.REFUSED
        assert set(ways) == {way}
        assert (host.units.pushes, host.units.restarts) == ([], [])
