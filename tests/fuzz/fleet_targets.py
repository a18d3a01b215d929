# SPDX-License-Identifier: MIT
"""What a fleet's etcd answers, and what its users write there: slots, halts, limits, hosts."""

from __future__ import annotations

import base64
import contextlib
from typing import Final

import msgspec

from credferry.agent.fleet import forms, keys, presence, transactions
from credferry.agent.fleet.deciding import Take, decide
from credferry.agent.fleet.model import LIMIT_MAX, Group, Halt, Holder, Limit, UnreadableHalt
from credferry.agent.printable import printable
from tests.fuzz.target import Target

_ME: Final = Holder("h1", "web", "1" * 32)


def fleet_content(data: bytes) -> None:
    """What a user of etcd writes in the place of a slot, a halt, a limit or a host."""
    slot = forms.read_slot(0, data, 1)
    assert slot is None or (keys.HOST.fullmatch(slot.holder.host) and slot.holder.vm), "no holder"
    halt = forms.read_halt(data, 1)
    assert printable(halt.text) == halt.text, "a halt with commands for a terminal"
    assert isinstance(halt, Halt | UnreadableHalt)
    limit = forms.read_limit(data, 1)
    assert not isinstance(limit, Limit) or 1 <= limit.number <= LIMIT_MAX, "a limit that is none"
    pair = {"key": _b64(keys.host_key("web", "h1").encode()), "value": _b64(data)}
    host = presence._read(keys.hosts("web"), pair)
    assert host is None or printable(host.version) == host.version, "a host with commands for a terminal"


def fleet_answer(data: bytes) -> None:
    """What stands in the place of etcd's gateway answers: it is a group, or is refused."""
    try:
        document = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return
    with contextlib.suppress(transactions.AnswerError):
        _decide(transactions.group("web", transactions.answer(document)))
    if isinstance(document, dict):
        presence._read(keys.hosts("web"), document)


def _decide(group: Group) -> None:
    decision = decide(group, _ME, lambda free: free[0])
    if isinstance(decision, Take):
        assert group.halt is None, "a slot of a halted group"
        assert isinstance(group.limit, Limit), "a slot without a limit"
        assert len(group.held) < group.limit.number, "more slots than the limit"
        assert 0 <= decision.number < group.limit.number, "no slot's number"


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


_WORDS: Final = ('"host":', '"vm":', '"machine":', '"change":', '"since":', '"why":', "1" * 32)
TARGETS: Final = (
    Target("fleet-content", fleet_content, (*_WORDS, '"version":', '"vms":')),
    Target(
        "fleet-answer",
        fleet_answer,
        ('"header":', '"cluster_id":', '"responses":', '"response_range":', '"kvs":', '"succeeded":'),
    ),
)
