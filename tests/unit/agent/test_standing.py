# SPDX-License-Identifier: MIT
"""Where a VM stands as people are told it, and which orders on it can be followed."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from credferry.agent.audit.events import Order
from credferry.agent.cli.documents import rfc3339
from credferry.agent.config.model import VmConfig
from credferry.agent.config.secrets import CredentialConfig
from credferry.agent.control.interface import AGENT_PROPERTIES, SIGNALS, VM_PROPERTIES, vm_path
from credferry.agent.control.objects import vm_properties
from credferry.agent.errors import OrderError
from credferry.agent.reconcile.decision import Decision, State, decide
from credferry.agent.reconcile.desired import Desired
from credferry.agent.reconcile.observed import Observed
from credferry.agent.reconcile.status import UNDER_WAY, standing
from credferry.agent.rollout import preconditions as permits
from credferry.agent.rollout.operators import Operator
from credferry.agent.rollout.orders import Orders
from credferry.agent.sealing.keys import CredentialKey
from credferry.agent.store.evidence import Evidence
from credferry.agent.store.generations import Store
from credferry.agent.store.records import Attempt, Outcome
from credferry.agent.systemd.units import UnitState
from credferry.launcher.handoff import Channel, Manifest, Secret, Stamp
from tests.support.installation import CHECKOUT

if TYPE_CHECKING:
    from pathlib import Path

KEY = CredentialKey(bytes(4096))
VM = VmConfig(name="web", unit="microvm@web.service", credentials={"K": CredentialConfig(secret="k")})
DIGESTS = tuple(f"{number}" * 56 + "0" * 8 for number in range(3))  # of one key
UNIT_SINCE = 1_700_000_000.0
INVOCATION = "a" * 32


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with three generations, the last of them current."""
    made = Store(tmp_path, KEY)
    for number, digest in enumerate(DIGESTS, 1):
        made.write(Manifest("web", number, digest, "f" * 32, VM.delivery, ()), {})
    return made


def observed(store: Store, wanted: int = 2, running: int = 2, active: str = "active") -> Observed:
    """The VM with some digest wanted, and some generation running."""
    unit = UnitState("microvm@web.service", "loaded", active, "running", INVOCATION, changed_at=UNIT_SINCE)
    evidence = Evidence(INVOCATION, running + 1, DIGESTS[running], "f" * 32)
    hint = Stamp("web", running + 1, DIGESTS[running], "f" * 32, INVOCATION, Channel.API, 0)
    return Observed(
        vm=VM,
        desired=Desired(DIGESTS[wanted], (), {"K": Secret(b"x")}, VM.delivery),
        sealed=store.current("web"),
        unit=unit,
        evidence=evidence if active == "active" else None,
        hint=hint if active == "active" else None,
        assumed=None,
        attempt=store.attempt("web"),
        held=store.is_held("web"),
    )


def test_since_when(store: Store) -> None:
    """In step since it was started; due since it was sealed; held since the later of that and the word."""
    home = store.vm_directory("web")
    os.utime(home / "generations/3", (1_700_000_100, 1_700_000_100))

    def since(now: Observed) -> tuple[State, int]:
        said = standing(now, decide(now), store)
        return said.state, said.since

    assert since(observed(store)) == (State.IN_STEP, 1_700_000_000)
    assert since(observed(store, running=1)) == (State.RESTART_DUE, 1_700_000_100)
    store.hold("web", held=True)
    os.utime(home / "held", (1_700_000_200, 1_700_000_200))
    assert since(observed(store, running=1)) == (State.HELD, 1_700_000_200)
    store.hold("web", held=False)
    store.record_attempt("web", Attempt(DIGESTS[2], Outcome.ROLLED_BACK, "it broke", previous=2))
    os.utime(home / "rollout.json", (1_700_000_300, 1_700_000_300))
    assert since(observed(store, running=1)) == (State.FAILED, 1_700_000_300)
    assert since(observed(store, active="inactive"))[1] == 1_700_000_300
    assert rfc3339(1_700_000_300) == "2023-11-14T22:18:20Z"
    assert rfc3339(0) is None


@pytest.mark.parametrize(
    ("attempt", "said"),
    [
        (None, "started on generation 3"),
        (Attempt(DIGESTS[2], Outcome.RESTARTING), UNDER_WAY),
        (Attempt(DIGESTS[2], Outcome.ROLLED_BACK, "it broke"), "it broke"),
        (Attempt(DIGESTS[2], Outcome.RETRY), "started on generation 3"),
    ],
    ids=["well", "under way", "rolled back", "to be retried"],
)
def test_last_result(store: Store, attempt: Attempt | None, said: str) -> None:
    """What came of the last start: from what was noted of it, else from the stamp."""
    now = replace(observed(store), attempt=attempt)
    assert standing(now, Decision(VM, State.IN_STEP), store).last_result == said


def test_an_operators_rollback_is_no_failure(store: Store) -> None:
    """It is held, not failed, and what was put back is made current again only once the secret changes."""
    word = Attempt(DIGESTS[2], Outcome.ROLLED_BACK, "by an operator", previous=2, by_operator=True)
    store.record_attempt("web", word)
    store.revert("web", 2)
    decision = decide(observed(store, running=1))
    assert (decision.state, decision.seal, decision.restart) == (State.ROLLED_BACK, None, False)
    down = decide(observed(store, running=1, active="failed"))
    assert down.state is State.FAILED
    changed = decide(observed(store, wanted=0, running=1))
    assert (changed.state, changed.restart) == (State.RESTART_DUE, True)


@pytest.mark.parametrize(
    ("order", "kind"),
    [
        (permits.to_rotate, "Held"),
        (permits.to_roll_back, "Held"),
        (permits.to_rotate, "NotRunning"),
        (permits.to_rotate, "NothingSealed"),
        (permits.to_rotate, "RolledBack"),
        (permits.to_roll_back, "NothingBefore"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_what_cannot_be_followed(store: Store, order: object, kind: str) -> None:
    """Each reason for not following an order is told by its own word, with what to do."""
    match kind:
        case "Held":
            store.hold("web", held=True)
        case "NothingSealed":
            (store.vm_directory("web") / "current").unlink()
        case "RolledBack":
            store.record_attempt("web", Attempt(DIGESTS[2], Outcome.ROLLED_BACK, "it broke", previous=2))
            store.revert("web", 2)
        case "NothingBefore":
            store.revert("web", 1)
    now = observed(store, active="inactive" if kind == "NotRunning" else "active")
    with pytest.raises(OrderError) as raised:
        order(store, now)  # type: ignore[operator]  # one of the two functions above
    assert raised.value.kind == kind
    assert raised.value.hint


def test_going_back_skips_what_is_the_same(store: Store) -> None:
    """The generation to go back to is the newest before that holds something else."""
    store.write(Manifest("web", 4, DIGESTS[2], "f" * 32, VM.delivery, ()), {}, keep={1, 2, 3})
    manifest, previous = permits.to_roll_back(store, observed(store))
    assert (manifest.generation, previous.generation) == (4, 2)


def test_an_order_before_the_agent_is_ready() -> None:
    """It is refused, and leaves nothing behind."""
    hints: list[str] = []
    orders = Orders(hints.append)
    with pytest.raises(OrderError, match="starting"):
        orders.give("web", Order.ROTATE, Operator(0))
    assert orders.pending() == set()
    assert hints == []


def test_object_paths() -> None:
    """A VM's path holds letters, digits and underscores alone, and no two VMs have the same."""
    names = ["web", "db-1", "db_1", "1st", "a.b", "A"]
    paths = [vm_path(name).rpartition("/")[2] for name in names]
    assert paths == ["web", "db_2d1", "db_5f1", "_31st", "a_2eb", "A"]


def test_the_page_tells_of_everything(store: Store) -> None:
    """docs/dbus.md has each property, signal and error that there is."""
    page = (CHECKOUT / "docs/dbus.md").read_text()
    shown = vm_properties(standing(observed(store), Decision(VM, State.IN_STEP), store))
    assert shown.keys() | {"Order", "OrderResult"} == VM_PROPERTIES.keys()
    errors = {
        "Held",
        "NotRunning",
        "NothingSealed",
        "RolledBack",
        "NothingBefore",
        "Busy",
        "UnknownVm",
        "UnknownOrder",
        "Reason",
    }
    for name in {
        *VM_PROPERTIES,
        *AGENT_PROPERTIES,
        *SIGNALS,
        *errors,
        *(f"{state.value}" for state in State),
    }:
        assert name in page, name
