# SPDX-License-Identifier: MIT
"""Which generation counts as one that a VM runs well, and which ones a rollback may need."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from credferry.agent.config.model import VmConfig
from credferry.agent.config.units import AfterFails, Units
from credferry.agent.reconcile.desired import Refused
from credferry.agent.reconcile.observed import Observed
from credferry.agent.reconcile.pruning import needed, works_with
from credferry.agent.sealing.keys import CredentialKey
from credferry.agent.store.evidence import Evidence
from credferry.agent.store.generations import Store
from credferry.agent.store.records import Assumed, Attempt, Outcome, Owed, Pushed
from credferry.agent.systemd.units import UnitState
from credferry.launcher.handoff import Channel, Stamp
from tests.support.generations import KEY, manifest

if TYPE_CHECKING:
    from pathlib import Path

NOW, EARLIER = "a" * 32, "b" * 32
VM = VmConfig(name="web", unit="microvm@web.service", credentials={})
CHECKED = msgspec.structs.replace(VM, health=("true",))
OWES = msgspec.structs.replace(VM, units=Units(after="after@%i.service", after_fails=AfterFails.ROLLBACK))
UP = UnitState(VM.unit, "loaded", "active", "running", NOW)
REPORT = Stamp("web", 1, "1" * 64, "0" * 32, NOW, Channel.API, 0)
STARTED, PUSHED = Evidence(NOW, 1, f"{1:064x}", "0" * 32), Pushed(NOW, f"{5:064x}", 5)
ASSUMED = Assumed(NOW, f"{3:064x}", 3)


def seen(**now: Any) -> Observed:  # noqa: ANN401 (its fields)
    """A VM that is up, and of whose start root has kept the evidence, but for what differs."""
    is_like = Observed(VM, Refused(("x",)), None, UP, STARTED, None, None, hint=REPORT)
    return replace(is_like, **now)


def went(outcome: Outcome, digest: str = STARTED.digest, before: str = EARLIER) -> Attempt:
    """A rollout that was recorded."""
    return Attempt(digest, outcome, previous=9, before=before)


@pytest.mark.parametrize(
    ("now", "grace_over", "found"),
    [
        (seen(), False, STARTED),
        (seen(pushed=PUSHED), False, PUSHED),
        (seen(evidence=None, assumed=ASSUMED), False, ASSUMED),
        (seen(evidence=None), True, None),
        (seen(unit=None), True, None),
        (seen(unit=replace(UP, active="failed")), True, None),
        (seen(pushed=msgspec.structs.replace(PUSHED, asked=3)), True, None),
        (seen(hint=None), False, None),
        (seen(hint=None), True, STARTED),
        (seen(attempt=went(Outcome.RESTARTING)), True, None),
        (seen(attempt=went(Outcome.RESTARTING, f"{7:064x}")), True, STARTED),
        (seen(attempt=went(Outcome.RESTARTING, f"{7:064x}"), vm=CHECKED), True, None),
        (seen(attempt=went(Outcome.HALTED), vm=CHECKED), True, STARTED),
        (seen(attempt=went(Outcome.FAILED)), True, STARTED),
        (seen(attempt=went(Outcome.FAILED), vm=CHECKED), True, None),
        (seen(attempt=went(Outcome.ROLLED_BACK), vm=CHECKED), True, None),
        (seen(attempt=went(Outcome.ROLLED_BACK), vm=OWES, owed=Owed(NOW)), True, None),
        (seen(attempt=went(Outcome.FAILED, f"{7:064x}"), vm=CHECKED), True, STARTED),
    ],
    ids=[
        "by its start", "by a push", "assumed", "unknown", "systemd not asked", "down", "a push in doubt",
        "not reported yet", "never reported", "its restart is under way", "another's restart is recorded",
        "its health is not checked yet", "halted", "came right", "failed its check",
        "failed its check, and is back", "the unit after it failed", "another failed its check",
    ],
)  # fmt: skip
def test_what_a_vm_runs_well(now: Observed, grace_over: bool, found: object) -> None:
    """It is up with it, has reported that, and neither a restart nor a check of it is open or failed."""
    assert works_with(now, grace_over) == found


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Generations 1 to 9. 4 and 8 have the same values as 1 and 2."""
    made = Store(tmp_path, KEY)
    for number in range(1, 10):
        same = {4: 1, 8: 2}.get(number, number)
        made.write(manifest(same).but(generation=number), {}, None)
    return made


@pytest.mark.parametrize(
    ("now", "kept"),
    [
        (seen(), {1}),
        (seen(evidence=replace(STARTED, generation=77)), {77, 4}),
        (seen(evidence=replace(STARTED, generation=77, digest="f" * 64)), {77}),
        (seen(pushed=msgspec.structs.replace(PUSHED, asked=6)), {5, 6}),
        (seen(attempt=Attempt(f"{9:064x}", Outcome.FAILED, previous=7, ran=6)), {1, 6, 7}),
        (seen(unit=None, assumed=ASSUMED), {3}),
        (seen(unit=None, pushed=PUSHED), {5}),
        (seen(evidence=None), set()),
    ],
    ids=[
        "what it runs", "what has the same values", "what is gone", "what a push may have brought",
        "the way back", "what it may run", "what its guest may hold", "nothing",
    ],
)  # fmt: skip
def test_what_a_rollback_may_need(store: Store, now: Observed, kept: set[int]) -> None:
    """What the VM runs, where that can be told; else what it may run; and what a rollout goes back to."""
    assert needed(store, now) - {0} == kept


def test_what_worked_stays(store: Store) -> None:
    """By its number, and by its values: the host may have sealed them again under another number."""
    store.note_worked("web", 3, f"{3:064x}")
    store.note_worked("web", 99, f"{2:064x}")
    assert needed(store, seen(evidence=None)) == {3, 99, 8}


def test_what_worked_with_another_key_is_kept_by_its_number(store: Store) -> None:
    """Nothing has its digest any more."""
    store.note_worked("web", 3, f"{3:064x}")
    other = Store(store.state, CredentialKey(b"o" * 4096))
    assert needed(other, seen(evidence=None)) - {0} == {3}
