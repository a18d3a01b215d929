# SPDX-License-Identifier: MIT
"""What a VM has run well: an ordered rollback goes back to that, in the daemon's own loop."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from credferry.agent.audit.events import Event, Order
from credferry.agent.errors import OrderError
from credferry.agent.reconcile.decision import State
from credferry.agent.rollout.operators import Operator
from credferry.agent.store.locks import rollout_lock
from credferry.agent.store.record_files import WORKED_MAX
from tests.support.host import patience
from tests.support.loop import ONE_VM, Loop

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


ROOT = Operator(0)


class Site(Loop):
    """A service with one ONE_VM, which starts on each generation but the bad ones."""

    tried: list[int]
    bad: set[int]

    def start(self, _unit: str) -> str:
        """The VM's restart, as systemd does it."""
        number = self.store.current_number("a")
        self.tried.append(number)
        if number in self.bad:
            return self.fail_vm("a")
        self.start_vm("a")
        return "done"

    def publish_bad(self, number: int) -> None:
        """Publish a change that fails, and wait until it is rolled back."""
        self.bad.add(number)
        before = self.events().count(Event.ROLLED_BACK)
        self.publish(x=f"bad {number}")
        self.turn(lambda: self.events().count(Event.ROLLED_BACK) == before + 1)
        with self.store.lock(rollout_lock("a")):  # the worker has done its work
            pass
        self.turn()

    def publish_good(self, value: str) -> None:
        """Publish a change that works, and wait until the VM runs it."""
        self.publish(x=value)
        self.turn(lambda: self.decision("a").state is State.IN_STEP)
        self.turn()

    def roll_back(self) -> list[int]:
        """Give the order, and wait for its end. Returns the generations that the VM was started on."""
        self.tried.clear()
        self.service._orders.give("a", Order.ROLL_BACK, ROOT)
        self.turn(lambda: self.service._orders.given("a") is None)
        self.turn()
        return self.tried[:]

    @property
    def numbers(self) -> set[int]:
        """The generations that are there."""
        return set(self.store.numbers("a"))

    @property
    def worked(self) -> list[int]:
        """The generations that are noted as those that the VM has run well."""
        return [each.generation for each in self.store.worked("a")]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """The VM runs generation 1."""
    made = Site(tmp_path, ONE_VM)
    made.configure(ONE_VM, "attempts = 1")
    made.publish(x="one")
    made.tried, made.bad = [], set()
    with made.running():
        made.turn()
        made.start_vm("a")
        made.turn()
        made.units.job = made.start
        yield made


def test_a_rollback_goes_past_what_failed(site: Site) -> None:
    """The VM ran 1, three changes failed, and 5 works: it goes back to 1, and to no other."""
    for number in (2, 3, 4):
        site.publish_bad(number)
    site.publish_good("good")
    assert site.worked == [1, 5]
    assert site.roll_back() == [1]
    assert site.service._orders.result("a") == ""


def test_a_rollback_goes_past_what_never_ran(site: Site) -> None:
    """Changes 3 to 5 were sealed during the restart that took 6 along: the VM goes back to 1."""
    began, go = threading.Event(), threading.Event()

    def job(unit: str) -> str:
        began.set()
        assert go.wait(20 * patience())
        return site.start(unit)

    site.units.job = job
    for number in range(2, 7):
        site.publish(x=str(number))
        site.turn()
        assert began.wait(20 * patience())
        site.turn()
    go.set()
    site.turn(lambda: site.decision("a").state is State.IN_STEP)
    site.turn()
    assert site.tried == [6]
    assert site.roll_back() == [1]


def test_each_rollback_goes_further_back(site: Site) -> None:
    """The VM ran 1, 2 and 3. It goes back to 2, then to 1; what was left is not gone back to."""
    site.publish_good("two")
    site.publish_good("three")
    assert (site.roll_back(), site.roll_back()) == ([2], [1])
    with pytest.raises(OrderError, match="no kept generation before 1"):
        site.roll_back()
    site.publish_good("four")
    assert site.roll_back() == [1], "the operator has left 2 and 3"


@pytest.mark.parametrize("how", ["reload", "start"])
def test_the_last_that_worked_stays_over_a_reload(site: Site, how: str) -> None:
    """What a rollback needs is on disk, not in the memory of the agent that saw it run."""
    for number in (2, 3, 4):
        site.publish_bad(number)
    site.publish_good("good")
    site.store.vm_directory("a").joinpath("generations/6").mkdir()  # left by a crash, so it prunes
    if how == "reload":
        site.service._reload()
        site.turn()
        site.turn()
    else:
        site.service._restarts.stop()
        with site.running():
            site.turn()
            site.turn()
    assert {1, 5} <= site.numbers


def test_a_rollback_that_ends_where_it_began_has_failed(site: Site) -> None:
    """The generation before does not start, and the VM runs again what it ran: the order says so."""
    site.publish_good("two")
    site.bad.add(1)
    assert site.roll_back() == [1, 2]
    result = site.service._orders.result("a")
    assert result == "the generation before does not start, so the VM runs again what it ran"


def test_what_has_not_worked_yet_is_not_noted(site: Site) -> None:
    """While the restart's record stands, and while the launcher may still report, nothing is known."""
    site.publish_bad(2)
    assert site.worked == [1]
    site.publish_good("three")
    assert site.worked == [1, 3]


def test_without_the_record_the_newest_before_is_taken(site: Site) -> None:
    """As an earlier release does, where nothing is noted."""
    site.publish_bad(2)
    site.publish_good("three")
    (site.store.vm_directory("a") / "worked.json").unlink()
    previous = site.store.previous("a")
    assert previous is not None
    assert previous.generation == 2


def test_what_worked_is_known_with_another_key_of_the_host(site: Site) -> None:
    """Digests are keyed, and the host may get another key: the way back is the same."""
    site.publish_bad(2)
    site.publish_good("three")
    site.new_key()
    site.turn()
    assert site.worked == [1, 3]
    assert site.roll_back() == [1]


def test_so_many_are_noted_and_no_more(site: Site) -> None:
    """Each once, the latest last: what it runs again goes to the end."""
    for number in range(2, 5):
        site.publish_good(str(number))
    assert site.worked == [3, 4]
    assert len(site.worked) == WORKED_MAX
    site.roll_back()
    assert site.worked == [4, 3]


def test_a_look_at_what_is_noted_writes_nothing(site: Site) -> None:
    """The record is written once for each generation that works, also by the next run of the agent."""
    record = site.store.vm_directory("a") / "worked.json"
    before = record.stat()
    site.turn()
    site.service._reload()
    site.turn()
    site.turn()
    after = record.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_store_that_takes_no_record_is_tried_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk stops nothing, and a later look writes what is missing."""

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(type(site.store), "_note", refuse)
        site.publish_good("two")
        assert site.worked == [1]
    site.turn()
    assert site.worked == [1, 2]
