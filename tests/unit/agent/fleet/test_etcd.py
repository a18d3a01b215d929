# SPDX-License-Identifier: MIT
"""Slots in a real etcd: lost, late and repeated answers, limits, halts, and etcd's own history."""

from __future__ import annotations

import signal
import threading
from itertools import count, pairwise
from typing import TYPE_CHECKING

import pytest

from credferry.agent.fleet import forms, keys
from credferry.agent.fleet.cluster import Seen
from credferry.agent.fleet.model import (
    Applied,
    Full,
    Granted,
    Halt,
    Halted,
    Holder,
    OfHost,
    Unavailable,
    Unreadable,
)
from tests.support.etcd import RealEtcd
from tests.support.rude_http import Request, Script, forward, reply, serve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from http.server import BaseHTTPRequestHandler

_NUMBERS = count()


def host(number: int, vm: str = "web") -> Holder:
    """A VM of a host."""
    return Holder(f"h{number}", vm, f"{number:032x}")


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealEtcd]:
    """An etcd for all tests here. Each test has a group of its own."""
    made = RealEtcd(tmp_path_factory.mktemp("etcd"))
    yield made
    made.kill()


@pytest.fixture
def group() -> str:
    """A group that no other test uses."""
    return f"group-{next(_NUMBERS)}"


def held(etcd: RealEtcd, group: str) -> list[int]:
    """How many slots were held at each revision of etcd, from the first to the last."""
    return [len(each) for each in etcd.history(keys.slots(group))]


def test_a_slot_is_taken_and_given_back(etcd: RealEtcd, group: str) -> None:
    """One VM at a time by default. Asking again finds the slot, and giving back twice is no error."""
    engine = etcd.engine()
    assert engine.acquire(group, host(1), "r1") == Granted(0)
    assert engine.acquire(group, host(1), "r2") == Granted(0, again=True)
    found = engine.acquire(group, host(2), "r1")
    assert isinstance(found, Full)
    assert [each.holder for each in found.held if hasattr(each, "holder")] == [host(1)]
    assert engine.release(group, host(2)) == Applied(0)
    assert engine.release(group, host(1)) == Applied(1)
    assert engine.release(group, host(1)) == Applied(0)
    assert engine.acquire(group, host(2), "r1") == Granted(0)


def test_two_vms_of_one_host_are_two(etcd: RealEtcd, group: str) -> None:
    """A host's second VM does not share the slot of the first."""
    engine = etcd.engine()
    assert engine.acquire(group, host(1, "a"), "r") == Granted(0)
    assert isinstance(engine.acquire(group, host(1, "b"), "r"), Full)


def test_a_lowered_limit(etcd: RealEtcd, group: str) -> None:
    """Nobody gets a slot until fewer are held than the new limit allows, whichever are given back."""
    engine = etcd.engine()
    assert engine.limit(group, 3) == Applied()
    for number in range(3):
        assert isinstance(engine.acquire(group, host(number), "r"), Granted)
    assert engine.limit(group, 1) == Applied()
    for number in range(3):
        assert isinstance(engine.acquire(group, host(9), "r"), Full)
        assert engine.release(group, host(number)) == Applied(1)
    assert engine.acquire(group, host(9), "r") == Granted(0)
    history = held(etcd, group)
    assert max(history) == 3
    assert history[-1] == 1


@pytest.mark.parametrize("value", ["0", "-1", "", "many", "1.5", "100000"])
def test_a_limit_that_is_none(etcd: RealEtcd, group: str, value: str) -> None:
    """With such a limit nobody gets a slot, the reason names the group, and a slot can go back."""
    engine = etcd.engine()
    assert engine.acquire(group, host(1), "r") == Granted(0)
    etcd.put(keys.limit_key(group), value)
    found = engine.acquire(group, host(2), "r")
    assert isinstance(found, Unavailable)
    assert group in found.reason
    assert engine.release(group, host(1)) == Applied(1)
    assert isinstance(engine.acquire(group, host(1), "r"), Unavailable)
    assert engine.limit(group, 1) == Applied()
    assert engine.acquire(group, host(1), "r") == Granted(0)


def test_garbage_is_held_until_an_operator_frees_it(etcd: RealEtcd, group: str) -> None:
    """Unreadable slots count. Freeing them leaves the slots of VMs, and freeing a host leaves them."""
    engine = etcd.engine()
    assert engine.limit(group, 3) == Applied()
    assert isinstance(engine.acquire(group, host(1), "r"), Granted)
    etcd.put(keys.slots(group) + "00", "x")
    etcd.put(keys.slots(group) + "\u00e9", "x")
    assert isinstance(engine.acquire(group, host(2), "r"), Full)
    assert engine.free(group, OfHost("h2")) == Applied(0)
    assert engine.free(group, Unreadable()) == Applied(2)
    state = engine.state(group)
    assert not isinstance(state, Unavailable)
    assert [each.holder for each in state.slots] == [host(1)]


def test_slots_of_a_dead_host(etcd: RealEtcd, group: str) -> None:
    """A dead host's slots stay held. An operator frees those of one VM or of the host, and no others."""
    engine = etcd.engine()
    assert engine.limit(group, 3) == Applied()
    for holder in (host(1, "a"), host(1, "b"), host(2)):
        assert isinstance(engine.acquire(group, holder, "r"), Granted)
    assert isinstance(engine.acquire(group, host(3), "r"), Full)
    assert engine.free(group, OfHost("h1", "a")) == Applied(1)
    assert engine.free(group, OfHost("h1")) == Applied(1)
    state = engine.state(group)
    assert not isinstance(state, Unavailable)
    assert [each.holder for each in state.slots] == [host(2)]


def test_two_machines_with_one_host_name(etcd: RealEtcd, group: str) -> None:
    """The second machine neither shares the slot of the first, nor gives it back."""
    engine, twin = etcd.engine(), Holder("h1", "web", "f" * 32)
    assert engine.acquire(group, host(1), "r") == Granted(0)
    found = engine.acquire(group, twin, "r")
    assert isinstance(found, Unavailable)
    assert "another machine" in found.reason
    assert engine.release(group, twin) == Applied(0)
    assert engine.acquire(group, host(1), "r") == Granted(0, again=True)


def test_a_halt_while_others_wait(etcd: RealEtcd, group: str) -> None:
    """After a failure nobody gets a slot, free ones included. The first halt stays until it is ended."""
    engine = etcd.engine()
    assert engine.limit(group, 2) == Applied()
    assert isinstance(engine.acquire(group, host(1), "r"), Granted)
    assert isinstance(engine.acquire(group, host(2), "r"), Granted)
    assert isinstance(engine.acquire(group, host(3), "r"), Full)
    assert engine.halt(group, host(1), "r", "no health\n\x1b[2J") == Applied()
    assert engine.halt(group, host(1), "r", "again") == Applied(0)
    found = engine.halt(group, host(2), "r", "as well")
    assert isinstance(found, Halted)
    assert isinstance(found.halt, Halt)
    assert found.halt.holder == host(1)
    assert found.halt.why.isprintable()
    assert engine.release(group, host(2)) == Applied(1)
    assert isinstance(engine.acquire(group, host(3), "r"), Halted)
    assert isinstance(engine.acquire(group, host(2), "r"), Halted)
    assert isinstance(engine.acquire(group, host(1), "r2"), Granted), "a newer value for the VM that failed"
    assert engine.resume(group, host(2)) == Applied(0)
    assert engine.resume(group, host(1)) == Applied(1)
    assert engine.resume(group) == Applied(0)
    assert isinstance(engine.acquire(group, host(3), "r"), Granted)


def test_an_unreadable_halt_halts(etcd: RealEtcd, group: str) -> None:
    """Garbage in the place of a halt stops the group, and an operator can end it."""
    engine = etcd.engine()
    etcd.put(keys.halt_key(group), "")
    assert isinstance(engine.acquire(group, host(1), "r"), Halted)
    assert engine.resume(group) == Applied(1)
    assert engine.acquire(group, host(1), "r") == Granted(0)


class Lossy:
    """A proxy before etcd: what becomes of the requests that write a slot or remove one."""

    def __init__(self, etcd: RealEtcd, *, deliveries: int = 1, is_answered: bool = False) -> None:
        self.etcd, self.deliveries, self.is_answered = etcd, deliveries, is_answered
        self.kept: list[Request] = []

    def answer(self, handler: BaseHTTPRequestHandler, request: Request) -> None:
        """Forward a request, as often as asked for, and answer or close the connection."""
        writes = b"request_put" in request.body or b"request_delete_range" in request.body
        if writes:
            self.kept.append(request)
        answers = [forward(request, self.etcd.url) for _ in range(self.deliveries if writes else 1)]
        if writes and not self.is_answered:
            handler.close_connection = True
        else:
            reply(handler, *answers[0])


def test_a_lost_answer_to_acquire(etcd: RealEtcd, group: str) -> None:
    """The VM has the slot, finds it at its next try, and the same slot is not taken twice."""
    proxy = Lossy(etcd)
    with serve(Script(proxy.answer)) as server:
        engine = etcd.engine(server.url)
        found = engine.acquire(group, host(1), "r")
        assert isinstance(found, Unavailable)
        assert server.url in found.reason
    assert etcd.engine().acquire(group, host(1), "r") == Granted(0, again=True)
    assert isinstance(etcd.engine().acquire(group, host(2), "r"), Full)
    assert max(held(etcd, group)) == 1


def test_a_lost_answer_and_another_member(etcd: RealEtcd, group: str) -> None:
    """With another member to ask, the same call finds out that the slot is taken, or is given back."""
    with serve(Script(Lossy(etcd).answer)) as server:
        assert etcd.engine(server.url, etcd.url).acquire(group, host(1), "r") == Granted(0, again=True)
        assert etcd.engine(server.url, etcd.url).release(group, host(1)) == Applied(0)
    assert held(etcd, group)[-1] == 0


def test_a_lost_answer_to_release(etcd: RealEtcd, group: str) -> None:
    """The slot is given back, the next try finds that, and takes nothing from the one that has it now."""
    assert etcd.engine().acquire(group, host(1), "r") == Granted(0)
    with serve(Script(Lossy(etcd).answer)) as server:
        engine = etcd.engine(server.url)
        assert isinstance(engine.release(group, host(1)), Unavailable)
        assert etcd.engine().acquire(group, host(2), "r") == Granted(0)
        assert engine.release(group, host(1)) == Applied(0)
    assert held(etcd, group)[-1] == 1


def test_lost_answers_to_halt_and_resume(etcd: RealEtcd, group: str) -> None:
    """The halt is there, or is gone, and the next try finds that."""
    with serve(Script(Lossy(etcd).answer)) as server:
        engine = etcd.engine(server.url)
        assert isinstance(engine.halt(group, host(1), "r", "x"), Unavailable)
        assert isinstance(engine.acquire(group, host(2), "r"), Halted)
        assert isinstance(engine.resume(group), Unavailable)
        assert engine.resume(group) == Applied(0)


def test_requests_that_arrive_twice_and_late(etcd: RealEtcd, group: str) -> None:
    """A network that repeats requests, also long after, leads to no second slot and no lost one."""
    proxy = Lossy(etcd, deliveries=2, is_answered=True)
    with serve(Script(proxy.answer)) as server:
        engine = etcd.engine(server.url)
        assert engine.acquire(group, host(1), "r") == Granted(0)
        assert engine.release(group, host(1)) == Applied(1)
        assert engine.acquire(group, host(2), "r") == Granted(0)
        for request in proxy.kept:
            forward(request, etcd.url)
    state = etcd.engine().state(group)
    assert not isinstance(state, Unavailable)
    assert [each.holder for each in state.slots] == [host(2)]
    assert max(held(etcd, group)) == 1


def test_a_release_that_arrives_after_the_slot_was_found_again(etcd: RealEtcd, group: str) -> None:
    """A release without an answer, sent again by the network much later, leaves the VM its slot."""
    proxy = Lossy(etcd, deliveries=0)
    engine = etcd.engine()
    assert engine.acquire(group, host(1), "r") == Granted(0)
    with serve(Script(proxy.answer)) as server:
        assert isinstance(etcd.engine(server.url).release(group, host(1)), Unavailable)
    assert engine.acquire(group, host(1), "r") == Granted(0, again=True)
    for request in proxy.kept:
        forward(request, etcd.url)
    assert held(etcd, group)[-1] == 1


def test_many_hosts_at_once(etcd: RealEtcd, group: str) -> None:
    """Twelve hosts take and give back slots at the same time. In no revision are more than three held."""
    assert etcd.engine().limit(group, 3) == Applied()
    rounds, failures = 4, []

    def work(number: int) -> None:
        engine, left = etcd.engine(), rounds
        while left:
            found = engine.acquire(group, host(number), "r")
            if isinstance(found, Granted):
                left -= 1
                if engine.release(group, host(number)) != Applied(1):
                    failures.append(number)
            elif not isinstance(found, Full):
                failures.append(number)
                return

    threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert failures == []
    history = etcd.history(keys.slots(group))
    assert max(map(len, history)) <= 3
    assert history[-1] == {}
    taken = 0
    for before, after in pairwise(history):
        taken += len(after.keys() - before.keys())
        holders = [forms.read_slot(0, content, 1) for content in after.values()]
        assert len({each.holder for each in holders if each is not None}) == len(after)
    assert taken == 12 * rounds


def test_a_bad_value_stops_after_the_limit(etcd: RealEtcd, group: str) -> None:
    """Of twenty hosts that get a value which breaks a VM, only as many try it as the limit allows."""
    assert etcd.engine().limit(group, 2) == Applied()
    tried = []
    for _ in range(3):  # each host asks again and again
        for number in range(20):
            engine = etcd.engine()
            found = engine.acquire(group, host(number), "bad")
            if isinstance(found, Granted) and not found.again:
                tried.append(number)
            if len(tried) == 2:  # both are down before the first says so
                for failed in tried:
                    engine.halt(group, host(failed), "bad", "no health")
    assert tried == [0, 1]
    assert max(held(etcd, group)) == 2


def test_groups_are_listed(etcd: RealEtcd, group: str) -> None:
    """Each group of which anything is kept is listed once, and keys of others are not."""
    engine = etcd.engine()
    others = f"{group}-a", f"{group}.b", f"{group}0"
    for name in (group, *others):
        assert isinstance(engine.acquire(name, host(1), "r"), Granted)
        assert isinstance(engine.halt(name, host(1), "r", "x"), Applied)
    etcd.put(keys.TOP + "stray", "x")
    etcd.put(keys.TOP + "a_b/limit", "x")
    etcd.put("/credferry/2/later/limit", "x")
    found = engine.groups()
    assert not isinstance(found, Unavailable)
    assert len(found) == len(set(found))
    assert {each for each in found if each.startswith(group)} == {group, *others}
    assert "later" not in found
    assert "stray" not in found


def test_another_cluster_does_not_count(etcd: RealEtcd, group: str) -> None:
    """A member of another cluster knows nothing of the slots that are held: its answer is refused."""
    engine = etcd.engine()
    engine.known.seen = Seen("1", 1)
    found = engine.acquire(group, host(1), "r")
    assert isinstance(found, Unavailable)
    assert "another cluster" in found.reason
    assert etcd.url in found.reason


def test_etcd_that_stops_and_comes_back(etcd: RealEtcd, group: str) -> None:
    """A stopped etcd costs a call its deadline. A killed one has the slot after its restart."""
    engine = etcd.engine()
    assert engine.acquire(group, host(1), "r") == Granted(0)
    etcd.signal(signal.SIGSTOP)
    try:
        impatient = type(engine)([etcd.member(seconds=0.2)])
        found = impatient.acquire(group, host(2), "r")
    finally:
        etcd.signal(signal.SIGCONT)
    assert found == Unavailable(f"{etcd.url}: no answer within 0.2 s", "check the server and the network")
    etcd.kill()
    for call in (engine.acquire(group, host(1), "r"), engine.release(group, host(1)), engine.state(group)):
        assert isinstance(call, Unavailable)
        assert "connection failed" in call.reason
    etcd.start()
    assert engine.acquire(group, host(1), "r") == Granted(0, again=True)


def test_a_clock_that_is_wrong_changes_nothing(etcd: RealEtcd, group: str) -> None:
    """Slots have no end. A host whose clock is off by years takes, keeps and gives back as others."""
    engine = etcd.engine()
    for wall in (-5.0, 0.0, 4e12, float("nan")):
        engine.wall = lambda wall=wall: wall  # type: ignore[misc]  # a default binds the clock
        assert engine.acquire(group, host(1), "r") == Granted(0)
        assert isinstance(etcd.engine().acquire(group, host(2), "r"), Full)
        assert engine.release(group, host(1)) == Applied(1)


@pytest.mark.parametrize("wrong", ["", "a/b", "x" * 65])
def test_a_group_of_a_wrong_form_raises(etcd: RealEtcd, wrong: str) -> None:
    """Such a name is refused before any request: it cannot lead to another group's keys."""
    engine = etcd.engine()
    with pytest.raises(ValueError, match="group"):
        engine.acquire(wrong, host(1), "r")
    with pytest.raises(ValueError, match="group"):
        engine.limit(wrong, 1)
