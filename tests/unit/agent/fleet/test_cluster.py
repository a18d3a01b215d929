# SPDX-License-Identifier: MIT
"""A host keeps to one cluster of etcd, also over restarts of its agent: another one has lost its slots."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from unittest.mock import patch

import pytest
from msgspec.structs import replace

from credferry.agent.errors import StoreError
from credferry.agent.fleet import keys
from credferry.agent.fleet.cluster import HINT, Known
from credferry.agent.fleet.etcd import Etcd
from credferry.agent.fleet.model import Applied, Granted, Group, Holder, Slot, Unavailable
from credferry.agent.fleet.presence import Presence
from credferry.agent.store.fleet_cluster import FleetCluster
from tests.support.etcd import RealEtcd
from tests.support.world.etcd import ModelEtcd, ModelMember, model_engine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from credferry.agent.fleet.transactions import Txn, TxnAnswer

ME = Holder("h1", "web", "1" * 32)
GROUP = "web"


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[RealEtcd]:
    """An etcd that the test may destroy."""
    (tmp_path / "etcd").mkdir()
    made = RealEtcd(tmp_path / "etcd")
    yield made
    made.kill()


@pytest.fixture
def record(tmp_path: Path) -> FleetCluster:
    """The record of a host's store."""
    return FleetCluster(tmp_path / "state")


def started(etcd: RealEtcd, record: FleetCluster) -> Etcd:
    """The engine of an agent that has just started."""
    return Etcd([etcd.member()], known=Known(record))


def keys_of(etcd: RealEtcd) -> set[bytes]:
    """What is in an etcd now."""
    return set(etcd.history(keys.TOP)[-1])


def test_another_cluster_gives_no_slot_after_a_restart(
    etcd: RealEtcd, record: FleetCluster, tmp_path: Path
) -> None:
    """The agent has used one etcd. After its restart, another one gives no slot and takes none back."""
    assert started(etcd, record).acquire(GROUP, ME, "r") == Granted(0)
    (tmp_path / "other").mkdir()
    other = RealEtcd(tmp_path / "other")
    try:
        engine = started(other, record)
        for call in (engine.acquire(GROUP, ME, "s"), engine.release(GROUP, ME), engine.state(GROUP)):
            assert call == Unavailable(
                f"{other.url}: it belongs to another cluster than this host has used so far", HINT
            )
        assert keys_of(other) == set()
        assert record.forget()
        assert engine.acquire(GROUP, ME, "s") == Granted(0)
        assert isinstance(started(etcd, record).state(GROUP), Unavailable)
    finally:
        other.kill()


def test_an_etcd_that_was_made_anew_gives_no_slot(
    etcd: RealEtcd, record: FleetCluster, tmp_path: Path
) -> None:
    """An etcd with the same members and token has the same cluster ID again: its revision betrays it."""
    before = started(etcd, record)
    for _ in range(3):
        assert isinstance(before.acquire(GROUP, ME, "r"), Granted)
    etcd.kill()
    shutil.rmtree(tmp_path / "etcd/data")
    etcd.start()
    for engine in (before, started(etcd, record)):
        found = engine.acquire(GROUP, Holder("h2", "web", "2" * 32), "r")
        assert isinstance(found, Unavailable)
        assert "it has lost changes: it is at revision 1, and this host has seen " in found.reason
        assert found.hint == HINT
    assert keys_of(etcd) == set()
    assert before.known.seen is not None
    assert before.known.seen.cluster == etcd_id(etcd)
    assert record.forget()
    assert before.acquire(GROUP, ME, "r") == Granted(0)


def test_nothing_is_written_to_an_etcd_that_was_made_anew(
    etcd: RealEtcd, record: FleetCluster, tmp_path: Path
) -> None:
    """However often the host tries, the other one's revision stays low, and it is refused each time."""
    engine = started(etcd, record)
    for vm in ("a", "b", "c"):
        assert isinstance(engine.acquire(vm, ME, "r"), Granted)
    presence = Presence([etcd.member()], record)
    assert presence.tell(ME.host, "0.3.0", {GROUP: {"in step": 1}}, 5.0) == Applied(1)
    etcd.kill()
    assert isinstance(engine.state(GROUP), Unavailable)
    shutil.rmtree(tmp_path / "etcd/data")
    etcd.start()
    slot = Slot(0, ME, "r", 0.0, 2)
    for number in range(10):
        vms = {GROUP: {"in step": number}}
        for call in (
            engine.halt(GROUP, ME, "r", "it failed"),
            engine.limit(GROUP, 2),
            engine.expire(GROUP, slot),
            engine.acquire(GROUP, ME, "r"),
            presence.tell(ME.host, "0.3.0", vms, 5.0),
        ):
            assert isinstance(call, Unavailable)
            assert "at revision 1, " in call.reason
    assert keys_of(etcd) == set()


def etcd_id(etcd: RealEtcd) -> str:
    """The ID of an etcd's cluster, as a program that keeps to none sees it."""
    engine = etcd.engine()
    assert isinstance(engine.state(GROUP), Group)
    assert engine.known.seen is not None
    return engine.known.seen.cluster


def test_the_record_goes_along_with_each_slot(etcd: RealEtcd, record: FleetCluster) -> None:
    """The record says how far the cluster had come when the last slot was taken."""
    assert record.read() is None
    engine = started(etcd, record)
    assert isinstance(engine.state(GROUP), Group)
    assert record.read() == (etcd_id(etcd), 1)
    assert engine.acquire(GROUP, ME, "r") == Granted(0)
    assert record.read() == (etcd_id(etcd), 2)


@dataclass
class Anew:
    """A host that asks an etcd which another host uses as well, until the etcd is made anew."""

    record: FleetCluster
    now: float = 0.0
    etcd: ModelEtcd = field(default_factory=ModelEtcd)
    writes: list[int] = field(default_factory=list)
    """The revision of each write of the record."""

    def started(self) -> Etcd:
        """The engine of an agent that has just started."""
        return model_engine(ModelMember(self.etcd), known=Known(self, monotonic=lambda: self.now))

    def read(self) -> tuple[str, int] | None:
        """See `ClusterRecord`."""
        return self.record.read()

    def write(self, cluster: str, revision: int) -> None:
        """See `ClusterRecord`."""
        self.writes.append(revision)
        self.record.write(cluster, revision)

    def use(self, times: int) -> None:
        """Have the other host take slots and give them back."""
        for _ in range(times):
            self.etcd.put(b"/credferry/1/web/slots/0", b"")
            self.etcd.delete(b"/credferry/1/web/slots/0")

    def make_anew(self) -> None:
        """An operator makes etcd anew: it has the same ID again, and a few revisions."""
        self.etcd.pairs.clear()
        self.etcd.revision = 10


@pytest.fixture
def anew(record: FleetCluster) -> Anew:
    """A host that has had a slot."""
    made = Anew(record)
    engine = made.started()
    assert engine.acquire(GROUP, ME, "r") == Granted(0)
    assert engine.release(GROUP, ME) == Applied(1)
    return made


@pytest.mark.parametrize("how", ["a minute has passed", "the agent ends"])
def test_what_was_seen_outlasts_the_agent(anew: Anew, how: str) -> None:
    """An answer that gave no slot counts after a restart, too: an etcd that is behind it gives none."""
    engine = anew.started()
    assert isinstance(engine.state(GROUP), Group)
    anew.use(20)
    if how == "a minute has passed":
        anew.now += 60.0
    assert isinstance(engine.state(GROUP), Group)
    if how == "the agent ends":
        engine.write_down()
    assert anew.read() == ("7", anew.etcd.revision)
    anew.make_anew()
    for each in (engine, anew.started()):
        found = each.acquire(GROUP, ME, "r")
        assert isinstance(found, Unavailable)
        assert "it has lost changes: it is at revision 10, and this host has seen 43" in found.reason


def test_the_record_is_written_once_a_minute_at_most(anew: Anew) -> None:
    """However much others write, and however often this host asks; and not at all if nothing has changed."""
    engine = anew.started()
    anew.writes.clear()
    for _ in range(600):
        anew.use(1)
        assert isinstance(engine.state(GROUP), Group)
        anew.now += 1.0
    assert len(anew.writes) == 600 / 60
    anew.now += 60.0
    assert isinstance(engine.state(GROUP), Group)
    anew.writes.clear()
    for _ in range(600):
        assert isinstance(engine.state(GROUP), Group)
        engine.write_down()
        anew.now += 1.0
    assert anew.writes == []


def test_a_slot_writes_the_record_once(anew: Anew) -> None:
    """Before a restart of a VM, the record goes to disk once, with the slot."""
    anew.use(1)
    anew.now += 60.0
    anew.writes.clear()
    assert anew.started().acquire(GROUP, ME, "r") == Granted(0)
    assert anew.writes == [anew.etcd.revision]


def test_what_an_operator_has_forgotten_is_not_written_again(anew: Anew) -> None:
    """No answer of the former etcd, and no end of the agent, brings the record back."""
    engine = anew.started()
    assert isinstance(engine.state(GROUP), Group)
    anew.use(1)
    assert anew.record.forget()
    anew.now += 60.0
    assert isinstance(engine.state(GROUP), Group)
    engine.write_down()
    assert anew.read() is None
    anew.record.write("8", 1)  # it keeps to another one by now
    anew.use(1)
    engine.write_down()
    assert anew.read() == ("8", 1)


def test_a_disk_that_is_full_takes_nothing_from_an_answer(anew: Anew) -> None:
    """The record is written later. What etcd has answered stands, and an end of the agent raises nothing."""
    engine = anew.started()
    assert isinstance(engine.state(GROUP), Group)
    anew.use(1)
    anew.now += 60.0
    with patch.object(FleetCluster, "write", side_effect=StoreError("full", hint="wait")):
        assert isinstance(engine.state(GROUP), Group)
        engine.write_down()
    engine.write_down()
    assert anew.read() == ("7", anew.etcd.revision)


@dataclass
class Liar(ModelMember):
    """A member whose answers have another revision than its etcd is at."""

    said: int = 0

    def transaction(self, txn: Txn) -> TxnAnswer:
        """See `Member`."""
        found = super().transaction(txn)
        return replace(found, header=replace(found.header, revision=self.said))


@pytest.mark.parametrize("said", [2**44 + 100, 2**62, 2**63 - 1])
@pytest.mark.parametrize("is_first", [True, False])
def test_a_revision_that_no_etcd_reaches(record: FleetCluster, said: int, *, is_first: bool) -> None:
    """One answer of one faulty member is refused and not kept: the other members are believed as before."""
    etcd = ModelEtcd()
    good, liar = ModelMember(etcd, "http://good"), Liar(etcd, "http://liar", said=said)
    engine = model_engine(good, liar, known=Known(record))
    if not is_first:
        assert engine.acquire(GROUP, ME, "r") == Granted(0)
        assert engine.release(GROUP, ME) == Applied(1)
    good.fate = lambda: "lost"
    found = engine.acquire(GROUP, ME, "r")
    assert isinstance(found, Unavailable)
    assert f"http://liar: it says that it is at revision {said}, " in found.reason
    assert (record.read() is None) is is_first
    if not is_first:
        presence = Presence([liar], record)  # type: ignore[list-item]  # it has the method that is called
        told = presence.tell(ME.host, "0.3.0", {}, 5.0)
        assert isinstance(told, Unavailable)
        assert f"it says that it is at revision {said}, " in told.reason
    good.fate = lambda: ""
    assert engine.acquire(GROUP, ME, "r") == Granted(0)
    assert model_engine(good, known=Known(record)).acquire(GROUP, ME, "r") == Granted(0, again=True)


def test_a_revision_that_is_far_and_possible(record: FleetCluster) -> None:
    """Others may have written ever so much since this host has asked."""
    etcd = ModelEtcd()
    engine = model_engine(ModelMember(etcd), known=Known(record))
    assert engine.acquire(GROUP, ME, "r") == Granted(0)
    etcd.revision += 10**13
    assert engine.release(GROUP, ME) == Applied(1)


def test_an_answer_that_is_none_makes_the_next_member_be_read_first(record: FleetCluster) -> None:
    """After an answer that makes no sense, nothing is written to a member that was not looked at."""
    good, bad, anew = ModelMember(ModelEtcd(), "http://good"), Odd(ModelEtcd()), ModelMember(ModelEtcd())
    good.etcd.revision = bad.etcd.revision = 100
    engine = model_engine(good, bad, anew, known=Known(record))
    assert engine.acquire(GROUP, ME, "r") == Granted(0)
    bad.etcd.revision = 200
    good.fate = lambda: "lost"
    found = engine.halt(GROUP, ME, "r", "it failed")
    assert isinstance(found, Unavailable)
    assert anew.etcd.pairs == {}


class Odd(ModelMember):
    """A member that answers a transaction with parts that were not asked for."""

    def transaction(self, txn: Txn) -> TxnAnswer:
        """See `Member`."""
        return replace(super().transaction(txn), succeeded=False, responses=())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b'{"cluster": 7, "revision": 1}',
        b'{"cluster": "7", "revision": -5}',
        b'{"cluster": "7", "revision": %d}' % 2**63,
        b'{"cluster": "7", "revision": 1%s}' % (b"0" * 4200),
        b"\xff",
        b"[" * 4000,
    ],
)
def test_a_record_that_cannot_be_read(etcd: RealEtcd, record: FleetCluster, content: bytes) -> None:
    """Garbage does not count as no record: the agent takes no slot, and says what to do."""
    record.state.mkdir()
    record.path.write_bytes(content)
    found = started(etcd, record).acquire(GROUP, ME, "r")
    assert isinstance(found, Unavailable)
    assert str(record.path) in found.reason
    assert "credferry fleet forget-cluster" in found.hint
    assert keys_of(etcd) == set()
    assert record.forget()
    assert started(etcd, record).acquire(GROUP, ME, "r") == Granted(0)


@pytest.mark.parametrize("make", [lambda path: path.symlink_to("/nonexistent"), os.mkfifo])
def test_something_else_in_the_place_of_the_record(
    etcd: RealEtcd, record: FleetCluster, make: Callable[[Path], None]
) -> None:
    """It is no record, and it can be forgotten as one."""
    record.state.mkdir()
    make(record.path)
    found = started(etcd, record).acquire(GROUP, ME, "r")
    assert isinstance(found, Unavailable)
    assert "credferry fleet forget-cluster" in found.hint
    assert record.forget()
    assert started(etcd, record).acquire(GROUP, ME, "r") == Granted(0)


def test_a_record_that_cannot_be_written(etcd: RealEtcd, record: FleetCluster) -> None:
    """Without a place for the record, the agent takes no slot."""
    record.state.write_text("in the way")
    found = started(etcd, record).acquire(GROUP, ME, "r")
    assert isinstance(found, Unavailable)
    assert str(record.path) in found.reason
    assert keys_of(etcd) == set()


def test_there_is_nothing_to_forget(record: FleetCluster) -> None:
    """To forget twice is no error; a record in the place of which something else stands is."""
    assert not record.forget()
    record.write("7", 1)
    assert record.forget()
    record.path.mkdir()
    with pytest.raises(StoreError, match=r"fleet\.json"):
        record.forget()
