# SPDX-License-Identifier: MIT
"""How keys, slots, halts and limits of a fleet are written and read."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from credferry.agent.fleet import forms, keys
from credferry.agent.fleet.model import (
    LIMIT_MAX,
    BadLimit,
    Halt,
    Holder,
    Limit,
    Slot,
    UnreadableHalt,
    machine_of,
)

MACHINE = "0123456789abcdef" * 2
WEB = Holder("h-1.example.org", "web", MACHINE)
HOSTS = st.from_regex(keys.HOST, fullmatch=True)
VMS = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", fullmatch=True)
CHANGES = st.from_regex(r"[A-Za-z0-9-]{0,64}", fullmatch=True)
GROUPS = st.from_regex(keys.GROUP, fullmatch=True)


def test_keys_are_those_of_the_contract() -> None:
    """The keys of a group have the names that other tools and grants rely on."""
    assert keys.limit_key("web") == "/credferry/1/web/limit"
    assert keys.halt_key("web") == "/credferry/1/web/halt"
    assert keys.slot_key("web", 0) == "/credferry/1/web/slot/0"
    assert keys.slot_key("web", 999) == "/credferry/1/web/slot/999"
    assert keys.end(keys.slots("web")) == "/credferry/1/web/slot0"


@pytest.mark.parametrize("group", ["", "a/b", "a b", "a\n", "ä", "x" * 65, "a_b"])
def test_a_group_of_a_wrong_form_has_no_key(group: str) -> None:
    """A name that leads out of the group's keys is refused before any request."""
    with pytest.raises(ValueError, match="group"):
        keys.limit_key(group)


@given(GROUPS, st.integers(0, LIMIT_MAX - 1))
def test_the_number_of_a_slot_is_read_from_its_key(group: str, number: int) -> None:
    """Each slot's key has its number, and lies in the range of the group's slots and of no other group's."""
    key = keys.slot_key(group, number)
    assert keys.slot_number(group, key.encode()) == number
    assert keys.slots(group) <= key < keys.end(keys.slots(group))
    assert keys.slot_number(f"{group}-"[-64:], key.encode()) in {None, number if len(group) == 64 else None}


@pytest.mark.parametrize("rest", ["", "00", "07", "-1", "1000", "9999", "1/2", " 1", "1\n", "x", "٣"])
def test_no_other_key_is_a_slots(rest: str) -> None:
    """A key below ``slot/`` that credferry does not write has no number."""
    assert keys.slot_number("web", f"/credferry/1/web/slot/{rest}".encode()) is None


@given(GROUPS, st.sampled_from(["limit", "halt", "slot/0", "slot/x", "host/h1"]))
def test_the_group_is_read_from_a_key(group: str, rest: str) -> None:
    """Each key of a group has its name, and the next group's keys come after all of them."""
    key = f"{keys.TOP}{group}/{rest}".encode()
    assert keys.group_of(key) == group
    assert key < keys.after(key) < f"{keys.TOP}{group}z/".encode()


@pytest.mark.parametrize(
    "key", [b"", b"/credferry/1/", b"/credferry/1/web", b"/credferry/1/a_b/x", b"/x/web/a"]
)
def test_no_other_key_has_a_group(key: bytes) -> None:
    """A key that credferry does not write has no group, and is passed over alone."""
    assert keys.group_of(key) is None
    assert keys.after(key) == key + b"\0"


def test_known_slot() -> None:
    """A slot is written as this JSON, and read from it."""
    content = (
        b'{"host":"h-1.example.org","vm":"web","machine":"0123456789abcdef0123456789abcdef",'
        b'"change":"5f0c","since":1795900000.5}'
    )
    assert forms.write_slot(WEB, "5f0c", 1795900000.5) == content
    assert forms.read_slot(3, content, 17) == Slot(3, WEB, "5f0c", 1795900000.5, 17)


def test_known_halt() -> None:
    """A halt is written as this JSON, and read from it."""
    content = (
        b'{"host":"h-1.example.org","vm":"web","machine":"0123456789abcdef0123456789abcdef",'
        b'"change":"5f0c","since":1.0,"why":"the health check failed"}'
    )
    assert forms.write_halt(WEB, "5f0c", 1.0, "the health check failed") == content
    assert forms.read_halt(content, 4) == Halt("the health check failed", WEB, "5f0c", 1.0, 4)


def test_known_machine() -> None:
    """What identifies a machine does not change between releases, and is not the machine's ID."""
    made = machine_of(b"0123456789abcdef0123456789abcdef\n")
    assert made == machine_of(b"0123456789abcdef0123456789abcdef")
    assert made == "2abf7c10b5652176cb241d3b098afb68"


@given(HOSTS, VMS, CHANGES, st.floats(0, 1e10), st.integers(0, LIMIT_MAX - 1), st.integers(1))
def test_each_slot_can_be_read_again(
    host: str, vm: str, change: str, since: float, number: int, revision: int
) -> None:
    """What one host writes, another reads."""
    holder = Holder(host, vm, MACHINE)
    content = forms.write_slot(holder, change, since)
    assert len(content) <= forms.SIZE_MAX
    assert forms.read_slot(number, content, revision) == Slot(number, holder, change, since, revision)


@given(st.text(max_size=5000), st.floats())
def test_each_halt_can_be_read_again(why: str, since: float) -> None:
    """Whatever failed, and whatever the clock says, the halt is written, is bounded, and can be printed."""
    found = forms.read_halt(forms.write_halt(WEB, "r", since, why), 1)
    assert isinstance(found, Halt)
    assert found.holder == WEB
    assert found.why.isprintable()
    assert len(found.why) <= forms.WHY_MAX


@given(st.binary(max_size=300))
def test_garbage_is_never_a_slot_without_a_holder(content: bytes) -> None:
    """Any content either is a whole slot, or is unreadable; nothing raises."""
    found = forms.read_slot(0, content, 1)
    assert found is None or found.holder.vm
    assert forms.read_halt(content, 1).text.isprintable()


GOOD = {"host": "h", "vm": "web", "machine": MACHINE, "change": "r", "since": 1.0, "why": "x"}
BAD = [
    {"host": ""},
    {"host": "h\x1b[2J"},
    {"host": "h" * 300},
    {"host": None},
    {"vm": "../web"},
    {"vm": 3},
    {"machine": "0"},
    {"machine": MACHINE.upper()},
    {"change": "a b"},
    {"since": "now"},
    {"since": -1},
    {"since": 1e30},
]


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_a_wrong_field_makes_it_unreadable(bad: dict[str, object]) -> None:
    """One field of a wrong form makes it unreadable. Fields of a later release are allowed."""
    assert forms.read_slot(0, json.dumps({**GOOD, "later": [1]}).encode(), 1) is not None
    assert forms.read_slot(0, json.dumps({**GOOD, **bad}).encode(), 1) is None
    assert forms.read_halt(json.dumps({**GOOD, **bad}).encode(), 1) == UnreadableHalt(1)
    for name in GOOD:
        lacking = json.dumps({key: value for key, value in GOOD.items() if key != name}).encode()
        assert (forms.read_slot(0, lacking, 1) is None) is (name != "why")


def test_long_and_deep_content_is_unreadable() -> None:
    """Content beyond the limit is not read, nor is one that is nested without an end."""
    assert forms.read_slot(0, json.dumps({**GOOD, "later": "x" * forms.SIZE_MAX}).encode(), 1) is None
    assert forms.read_slot(0, b"[" * forms.SIZE_MAX, 1) is None
    assert forms.read_slot(0, b"", 1) is None


@pytest.mark.parametrize(
    "content",
    [b"0", b"", b"-1", b"+1", b"1.0", b"01", b" 1", b"1\n", b"1001", b"9" * 50, b"\xff", "٣".encode()],
)
def test_a_limit_of_another_form_is_bad(content: bytes) -> None:
    """Zero, a negative number and garbage are no limit, and are not taken for 1 either."""
    assert forms.read_limit(content, 5) == BadLimit(5)


@given(st.integers(1, LIMIT_MAX), st.integers(1))
def test_each_limit_can_be_read_again(number: int, revision: int) -> None:
    """Each allowed number is written so that each host reads it; an absent limit is 1."""
    assert forms.read_limit(forms.write_limit(number), revision) == Limit(number, revision)
    assert forms.read_limit(None, 0) == Limit(1, 0)


@pytest.mark.parametrize("number", [0, -1, LIMIT_MAX + 1])
def test_no_other_limit_is_written(number: int) -> None:
    """An operator cannot set a limit that hosts would not read."""
    with pytest.raises(ValueError, match="from 1 to 1000"):
        forms.write_limit(number)


@pytest.mark.parametrize(
    "holder", [Holder("", "web", MACHINE), Holder("h", "a/b", MACHINE), Holder("h", "a", "")]
)
def test_no_unreadable_slot_is_written(holder: Holder) -> None:
    """A holder that others could not read is refused before any request."""
    with pytest.raises(ValueError, match="holder"):
        forms.write_slot(holder, "r", 1.0)
