# SPDX-License-Identifier: MIT
"""Slots against a model of etcd: late, lost and repeated requests never lead to more than N."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from credferry.agent.fleet import forms, keys, transactions
from credferry.agent.fleet.deciding import Keep, Take, decide
from credferry.agent.fleet.model import (
    BadLimit,
    Full,
    Group,
    Halted,
    Holder,
    Limit,
    Slot,
    Unavailable,
    UnreadableHalt,
    UnreadableSlot,
)
from tests.support.world.etcd import ModelEtcd

if TYPE_CHECKING:
    from collections.abc import Callable

GROUP = "web"
HOLDERS = [Holder(f"h{number}", "web", f"{number:032x}") for number in range(3)]


class Model(ModelEtcd):
    """An etcd with one group."""

    @property
    def web(self) -> Group:
        """The group as it is now."""
        return self.group(GROUP)

    @property
    def taken(self) -> int:
        """How many slots are held."""
        return self.held(GROUP)


def test_a_group_without_keys_has_the_limit_one() -> None:
    """Nothing written means: one at a time, no halt."""
    assert Model().web == Group(GROUP, Limit(1, 0), (), None, 1)


def test_everything_of_a_group_is_read() -> None:
    """Limit, halt and slots are read, and what is not readable counts."""
    model = Model()
    for name, value in {
        "limit": b"none",
        "halt": b"{}",
        "slot/1": forms.write_slot(HOLDERS[0], "r", 1.0),
        "slot/2": b"",
        "slot/02": forms.write_slot(HOLDERS[0], "r", 1.0),
        "host/h1": b"{}",
    }.items():
        model.put(f"/credferry/1/web/{name}".encode(), value)
    assert model.web == Group(
        GROUP,
        BadLimit(2),
        (UnreadableSlot(None, 6), Slot(1, HOLDERS[0], "r", 1.0, 4), UnreadableSlot(2, 5)),
        UnreadableHalt(3),
        7,
    )


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        {},
        {"header": {}},
        {"header": {"cluster_id": "1"}, "responses": 3},
        {"header": {"cluster_id": "1", "revision": "x"}},
        {"header": {"cluster_id": "1"}, "responses": [{"response_range": {"kvs": [{"key": "%"}]}}]},
        {"header": {"cluster_id": "1"}, "responses": [{}, {}]},
        {
            "header": {"cluster_id": "1"},
            "responses": [{"response_range": {"kvs": [{"key": "AA=="}]}}, {}, {}],
        },
        {
            "header": {"cluster_id": "1"},
            "responses": [{}, {}, {"response_range": {"kvs": [{"key": "AA=="}]}}],
        },
        {"header": {"cluster_id": "1"}, "responses": [{}, {}, {"response_range": {"more": True}}]},
    ],
    ids=str,
)
def test_another_answer_is_no_group(document: object) -> None:
    """An answer that is not etcd's, or has other keys, or not all slots, never makes an empty group."""
    with pytest.raises(transactions.AnswerError):
        transactions.group(GROUP, transactions.answer(document))


def first(numbers: Any) -> int:  # noqa: ANN401 (any kind of answer)
    """The first free slot."""
    return int(numbers[0])


def group(limit: Limit | BadLimit, *held: Slot | UnreadableSlot, halt: Any = None) -> Group:  # noqa: ANN401 (any kind of answer)
    """A group at revision 9."""
    return Group(GROUP, limit, held, halt, 9)


def slot(number: int, holder: Holder) -> Slot:
    """A slot that a VM holds."""
    return Slot(number, holder, "r", 1.0, 5)


@pytest.mark.parametrize("number", ["-1", 2**63, str(2**64), "1" + "0" * 4200, 10**4200, "9" * 5000, "x"])
def test_numbers_that_no_etcd_has(number: object) -> None:
    """A revision has 63 bits; the ID of a cluster is text of 64 bits, without zeros before."""
    header = {"cluster_id": "7", "revision": "3"}
    pair = {"key": "eA==", "mod_revision": number}
    for document in (
        {"header": header | {"revision": number}},
        {"header": header | {"cluster_id": number}},
        {"header": header, "responses": [{"response_range": {"kvs": [pair]}}]},
    ):
        with pytest.raises(transactions.AnswerError):
            transactions.answer(document)


def test_the_largest_numbers_of_an_etcd() -> None:
    """What etcd can have is accepted; the ID of a cluster is never zero."""
    most = {"cluster_id": str(2**64 - 1), "revision": str(2**63 - 1)}
    assert transactions.answer({"header": most}).header == transactions.Header(str(2**64 - 1), 2**63 - 1)
    for cluster in ("0", "07", ""):
        with pytest.raises(transactions.AnswerError):
            transactions.answer({"header": {"cluster_id": cluster}})


def test_what_a_vm_gets() -> None:
    """A free slot, the slot that it has, or why it has to wait."""
    me, other = HOLDERS[:2]
    one, two = Limit(1, 0), Limit(2, 4)
    assert decide(group(one), me, first) == Take(0)
    assert decide(group(two, slot(0, other)), me, first) == Take(1)
    assert decide(group(one, slot(0, me)), me, first) == Keep(0, 5)
    assert decide(group(one, slot(0, other)), me, first) == Full((slot(0, other),), 1)
    assert decide(group(one, UnreadableSlot(None, 3)), me, first) == Full((UnreadableSlot(None, 3),), 1)
    assert isinstance(decide(group(BadLimit(4)), me, first), Unavailable)
    assert decide(group(BadLimit(4), slot(7, me)), me, first) == Keep(7, 5)


def test_slots_above_a_lowered_limit_count() -> None:
    """With two slots held above a limit of 1, nobody gets slot 0, and a limit of 3 leaves one."""
    held = slot(1, HOLDERS[1]), slot(2, HOLDERS[2])
    assert decide(group(Limit(1, 8), *held), HOLDERS[0], first) == Full(held, 1)
    assert decide(group(Limit(3, 8), *held), HOLDERS[0], first) == Take(0)


def test_a_halt_stops_all_but_the_one_that_failed() -> None:
    """The VM that halted the group may try a newer value with its slot. Every other one waits."""
    me, other = HOLDERS[:2]
    halt = forms.read_halt(forms.write_halt(me, "r", 1.0, "x"), 3)
    two = Limit(2, 4)
    assert decide(group(two, slot(0, me), halt=halt), me, first) == Keep(0, 5)
    assert decide(group(two, halt=halt), me, first) == Halted(halt)
    assert decide(group(two, slot(0, me), halt=halt), other, first) == Halted(halt)
    assert decide(group(two, slot(0, me), slot(1, other), halt=halt), other, first) == Halted(halt)
    unreadable = UnreadableHalt(3)
    assert decide(group(two, slot(0, me), halt=unreadable), me, first) == Halted(unreadable)


def test_two_machines_of_one_name_do_not_share_a_slot() -> None:
    """The slot of another machine with the same host name is not taken for one's own."""
    twin = Holder(HOLDERS[0].host, HOLDERS[0].vm, "f" * 32)
    found = decide(group(Limit(1, 0), slot(0, twin)), HOLDERS[0], first)
    assert isinstance(found, Unavailable)
    assert "another machine" in found.reason


@dataclass
class Hosts:
    """Hosts that act on what they read earlier. The network may deliver any request again at any time."""

    model: Model = field(default_factory=Model)
    seen: dict[int, Group] = field(default_factory=dict)
    sent: list[transactions.Txn] = field(default_factory=list)

    def read(self, who: int, _: int) -> None:
        """A host reads the group."""
        self.seen[who] = self.model.web

    def ask(self, who: int, number: int) -> None:
        """A host sends a request for a slot, on what it has read."""
        if who not in self.seen:
            return
        decision = decide(self.seen[who], HOLDERS[who], lambda free: free[number % len(free)])
        if isinstance(decision, Take):
            content = forms.write_slot(HOLDERS[who], "r", 1.0)
            self.sent.append(transactions.take(self.seen[who], decision.number, content))

    def acquire(self, who: int, number: int) -> None:
        """A host reads, asks, and its request arrives at once."""
        self.read(who, number)
        self.ask(who, number)
        self.deliver(0, 0)

    def deliver(self, who: int, number: int) -> None:
        """A request arrives: whoever sent it, and whether or not it did so before."""
        if not self.sent:
            return
        before, is_halted = self.model.taken, self.model.web.halt is not None
        if self.model.execute(self.sent[-(1 + who * number) % len(self.sent)]).succeeded:
            limit = self.model.web.limit
            assert isinstance(limit, Limit)
            assert self.model.taken == before + 1 <= limit.number
            assert not is_halted

    def give_back(self, who: int, _: int) -> None:
        """A host gives back the slots that it read as its own. It removes no other slot."""
        for each in self.seen[who].slots if who in self.seen else ():
            others = [other for other in self.model.web.slots if other != each]
            if each.holder == HOLDERS[who]:
                self.model.execute(transactions.give_back(GROUP, each.number, each.revision))
                assert list(self.model.web.slots) == others

    def limit(self, _: int, number: int) -> None:
        """An operator sets the limit."""
        self.model.execute(transactions.set_limit(GROUP, number))

    def unset(self, *_: int) -> None:
        """Somebody removes the limit."""
        self.model.delete(keys.limit_key(GROUP).encode())

    def halt(self, who: int, _: int) -> None:
        """A host halts the group."""
        self.model.execute(transactions.halt(GROUP, forms.write_halt(HOLDERS[who], "r", 1.0, "x")))

    def resume(self, *_: int) -> None:
        """An operator ends the halt."""
        if (halted := self.model.web.halt) is not None:
            self.model.execute(transactions.resume(GROUP, halted.revision))

    def plant(self, _: int, number: int) -> None:
        """Somebody writes garbage."""
        self.model.put(f"{keys.slots(GROUP)}0{number}".encode(), b"garbage")


STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                *[Hosts.read, Hosts.ask, Hosts.deliver, Hosts.acquire, Hosts.give_back, Hosts.give_back],
                *[Hosts.limit, Hosts.unset, Hosts.halt, Hosts.resume, Hosts.plant],
            ]
        ),
        st.integers(0, len(HOLDERS) - 1),
        st.integers(1, 4),
    ),
    max_size=60,
)


@settings(max_examples=300)
@given(STEPS)
def test_a_slot_is_never_taken_beyond_the_limit(
    steps: list[tuple[Callable[[Hosts, int, int], None], int, int]],
) -> None:
    """When a slot is taken, no more than N are held then, and the group is not halted.

    A host may act on a group that it read long ago, and each of its requests may arrive again at any time.
    """
    hosts = Hosts()
    for step, who, number in steps:
        step(hosts, who, number)


def take(model: Model, group: Group, who: int) -> bool:
    """Whether a host gets slot 0 on what it has read."""
    content = forms.write_slot(HOLDERS[who], "r", 1.0)
    return model.execute(transactions.take(group, 0, content)).succeeded


def test_a_slot_that_is_taken_a_group_that_is_halted_and_another_limit() -> None:
    """What changes after the read makes the request have no effect: the slot, the halt, the limit."""
    for change in (
        transactions.halt(GROUP, forms.write_halt(HOLDERS[1], "r", 1.0, "x")),
        transactions.set_limit(GROUP, 2),
        transactions.take(Model().web, 0, forms.write_slot(HOLDERS[1], "r", 1.0)),
    ):
        for limit in (None, 3):
            model = Model()
            if limit is not None:
                model.execute(transactions.set_limit(GROUP, limit))
            before = model.web
            model.execute({**change, "compare": []})
            assert not take(model, before, 0)
            assert model.execute(transactions.take(before, 0, b"")).responses, "the group is read again"


def test_a_late_release_does_not_remove_the_next_slot() -> None:
    """A release that arrives twice removes only the slot that it was sent for, not a later one."""
    model = Model()
    assert take(model, model.web, 0)
    release = transactions.give_back(GROUP, 0, model.web.slots[0].revision)
    assert model.execute(release).succeeded
    for who in (0, 1):
        assert take(model, model.web, who)
        assert not model.execute(release).succeeded
        assert model.taken == 1
        model.execute(transactions.give_back(GROUP, 0, model.web.slots[0].revision))


def test_a_late_release_does_not_remove_a_slot_that_is_kept() -> None:
    """A VM that finds its slot writes it anew: a release that it sent earlier and gave up has no effect."""
    model = Model()
    assert take(model, model.web, 0)
    release = transactions.give_back(GROUP, 0, model.web.slots[0].revision)
    before, content = model.web, forms.write_slot(HOLDERS[0], "r", 1.0)
    assert decide(before, HOLDERS[0], first) == Keep(0, before.slots[0].revision)
    assert model.execute(transactions.keep(before, 0, before.slots[0].revision, content)).succeeded
    assert not model.execute(release).succeeded
    assert model.taken == 1


def test_a_slot_that_is_gone_and_a_halt_since_the_read_are_not_kept() -> None:
    """What changes between the read and the request makes the VM read again."""
    content = forms.write_slot(HOLDERS[0], "r", 1.0)
    for change in (
        transactions.halt(GROUP, forms.write_halt(HOLDERS[1], "r", 1.0, "x")),
        {"compare": [], "success": [transactions._delete(keys.slot_key(GROUP, 0))]},
    ):
        model = Model()
        assert take(model, model.web, 0)
        before = model.web
        model.execute(change)
        found = model.execute(transactions.keep(before, 0, before.slots[0].revision, content))
        assert not found.succeeded
        assert found.responses, "the group is read again"


def test_a_late_resume_does_not_remove_the_next_halt() -> None:
    """An operator's resume that arrives late does not end a halt that the operator has not seen."""
    model = Model()
    content = forms.write_halt(HOLDERS[0], "r", 1.0, "x")
    model.execute(transactions.halt(GROUP, content))
    assert model.web.halt is not None
    resume = transactions.resume(GROUP, model.web.halt.revision)
    assert model.execute(resume).succeeded
    model.execute(transactions.halt(GROUP, content))
    assert not model.execute(resume).succeeded
    assert model.web.halt is not None


def test_an_absent_limit_that_was_set_and_removed_meanwhile() -> None:
    """A host that read "no limit" does not take a slot after others took some under a limit that is gone."""
    model = Model()
    before = model.web
    model.execute(transactions.set_limit(GROUP, 3))
    for number in (1, 2):
        content = forms.write_slot(HOLDERS[number], "r", 1.0)
        assert model.execute(transactions.take(model.web, number, content)).succeeded
    model.delete(keys.limit_key(GROUP).encode())
    content = forms.write_slot(HOLDERS[0], "r", 1.0)
    assert not model.execute(transactions.take(before, 0, content)).succeeded


def test_only_unreadable_slots_of_the_group_are_removed() -> None:
    """A key outside the group's slots is refused before any request."""
    with pytest.raises(ValueError, match="slot"):
        transactions.remove_unreadable(GROUP, b"/credferry/1/web/limit", 1)
