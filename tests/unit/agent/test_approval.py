# SPDX-License-Identifier: MIT
"""Changes that wait for an operator's approval: ``policy = "approve"``."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from credferry.agent.audit.events import Event, Order
from credferry.agent.errors import OrderError, StoreError
from credferry.agent.reconcile.decision import State
from credferry.agent.rollout.operators import Operator
from tests.support.loop import Loop

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

VM = '[vms.web]\npolicy = "approve"\n[vms.web.credentials]\nK = { secret = "k" }\n'
OTHER = '[vms.db.credentials]\nK = { text = "k" }\n'
ME = Operator(os.getuid())


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Loop]:
    """A loop whose VM runs what is published first, and for which something else is sealed since."""
    made = Loop(tmp_path, VM + OTHER)
    made.publish(k="1")
    with made.made():
        made.turn()
    made.start_vm("web")
    made.publish(k="2")
    with made.running():
        made.turn(until=lambda: made.decision("web").state is State.APPROVAL and is_sealed(made))
        yield made


def is_sealed(loop: Loop) -> bool:
    """Whether what is published for the VM is sealed."""
    return loop.decision("web").seal is None


def run(loop: Loop) -> str:
    """The run of what is sealed."""
    manifest = loop.store.current("web")
    assert manifest is not None
    return manifest.run


def test_a_change_waits(loop: Loop) -> None:
    """It is sealed, and the VM keeps what it runs. The reason is the command that approves it."""
    assert loop.units.restarts == []
    assert loop.decision("web").reasons == (f"approve it with: credferry approve web --run {run(loop)}",)


def test_an_approval_is_of_one_change(loop: Loop) -> None:
    """The VM gets what was approved. The next change waits again, be it to an earlier value."""
    loop.service._orders.give("web", Order.APPROVE, ME)
    loop.turn(until=lambda: len(loop.units.restarts) == 1)
    for value in ("3", "1"):
        loop.publish(k=value)
        loop.turn(until=lambda: loop.decision("web").state is State.APPROVAL and is_sealed(loop))
        assert len(loop.units.restarts) == 1


def test_an_approval_survives_a_restart_of_the_agent(tmp_path: Path) -> None:
    """It is on disk before the order is answered."""
    loop = Loop(tmp_path, VM)
    loop.publish(k="1")
    with loop.made():
        loop.turn()
    loop.start_vm("web")
    loop.publish(k="2")
    with loop.made():
        loop.turn(until=lambda: is_sealed(loop))
        loop.service._orders.give("web", Order.APPROVE, ME)
    assert loop.units.restarts == []
    with loop.running():
        loop.turn(until=lambda: loop.units.restarts)


def test_a_change_that_came_meanwhile_is_not_approved(loop: Loop) -> None:
    """An operator who names the change that was shown approves nothing else."""
    shown = run(loop)
    loop.publish(k="3")
    loop.turn(until=lambda: run(loop) != shown and is_sealed(loop))
    with pytest.raises(OrderError, match=f"what is sealed is not of run {shown}"):
        loop.service._orders.give("web", Order.APPROVE, ME, shown)
    loop.turn()
    assert loop.decision("web").state is State.APPROVAL
    loop.service._orders.give("web", Order.APPROVE, ME, run(loop)[:8])
    loop.turn(until=lambda: loop.units.restarts)


def test_what_is_published_during_the_restart_is_not_approved(tmp_path: Path) -> None:
    """A unit before the restart can take minutes. What comes meanwhile is sealed after the restart."""
    units = '{ before = "drain@%i.service" }'
    loop = Loop(tmp_path, VM.replace("[vms.web]", f"[vms.web]\nunits = {units}", 1))
    loop.publish(k="1")
    with loop.made():
        loop.turn()
    loop.start_vm("web")
    loop.publish(k="2")
    with loop.made() as service:
        loop.turn(until=lambda: is_sealed(loop))
        service._orders.give("web", Order.APPROVE, ME)
        approved = run(loop)

        def drain(_unit: str) -> str:
            loop.publish(k="3")
            session = service._session
            vm = session.config.vm("web")
            assert session.sealer.seal_due(session.observer.look([vm], loop.units)) == []
            return "done"

        loop.units.health = drain
        assert service._session.rollout.restart("web", loop.units) is State.IN_STEP
        evidence = service._session.observer.look_or_refuse([service._session.config.vm("web")], loop.units)
        assert (evidence.observed[0].runs.run, len(loop.units.restarts)) == (approved, 1)  # type: ignore[union-attr]  # it runs
        loop.turn(until=lambda: loop.decision("web").state is State.APPROVAL and is_sealed(loop))
        assert run(loop) != approved
    assert len(loop.units.restarts) == 1


def test_no_restart_onto_what_is_sealed_if_something_else_is_approved(tmp_path: Path) -> None:
    """A producer that goes to and fro has nothing else restarted onto, however often the agent looks."""
    loop = Loop(tmp_path, VM)
    loop.publish(k="1")
    with loop.made():
        loop.turn()
    loop.start_vm("web")
    with loop.made() as service:
        for value in ("2", "3"):
            loop.publish(k=value)
            loop.turn(until=lambda: is_sealed(loop))
            if value == "2":
                service._orders.give("web", Order.APPROVE, ME)
        loop.publish(k="2")  # what is approved is published, and something else is sealed
        for _ in range(9):
            service._session.rollout.restart("web", loop.units)
    assert loop.units.restarts == []


def test_the_audit_has_who_approved_what(loop: Loop) -> None:
    """The record names the user, the generation and its run."""
    loop.service._orders.give("web", Order.APPROVE, ME)
    said = [message for event, message in loop.told() if event is Event.ORDERED]
    who = f"{ME.name} (user {ME.uid})" if ME.name else f"user {ME.uid}"
    assert said == [f"web: approve of generation 2, run {run(loop)}, ordered by {who}"]


def test_an_approval_that_cannot_be_recorded_is_not_given(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full disk the operator gets an error, and the VM waits as before."""

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("credferry.agent.audit.writer.replace_durably", fail)
    with pytest.raises(StoreError, match="cannot write the number"):
        loop.service._orders.give("web", Order.APPROVE, ME)
    monkeypatch.undo()
    loop.turn()
    assert loop.decision("web").state is State.APPROVAL


def test_a_vm_that_needs_no_approval(loop: Loop) -> None:
    """The order is refused: nothing waits for it, and nothing later will."""
    with pytest.raises(OrderError, match="needs no approval"):
        loop.service._orders.give("db", Order.APPROVE, ME)


def test_the_approval_counts_with_another_key_of_the_host(loop: Loop) -> None:
    """The same values, sealed anew under their number, need no second approval."""
    loop.service._orders.give("web", Order.APPROVE, ME)
    loop.new_key()
    loop.turn(until=lambda: loop.units.restarts)
    assert loop.decision("web").state is State.IN_STEP
