# SPDX-License-Identifier: MIT
"""Transactions of etcd's HTTP gateway, and how its answers are read. No effects.

The gateway writes integers as strings, and leaves out what is false, zero or empty (measured on 3.4.23 and
3.5.16). See: https://etcd.io/docs/v3.5/learning/api/ and etcd's rpc.proto.
"""

from __future__ import annotations

from base64 import b64encode
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias

import msgspec

from credferry.agent.fleet import forms, keys
from credferry.agent.fleet.model import LIMIT_MAX, Group, Slot, UnreadableSlot

if TYPE_CHECKING:
    from collections.abc import Iterable

Txn: TypeAlias = dict[str, Any]
_HELD_MAX: Final = 2 * LIMIT_MAX
"""Keys of slots that are read. A group with more is not one that credferry has made."""


class AnswerError(ValueError):
    """An answer is not what etcd answers."""


Number: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
"""A revision, or the ID or time of a lease: an int64 of etcd that is never negative."""


class Header(msgspec.Struct, frozen=True):
    """Of each answer: which cluster answers, and at which revision."""

    cluster_id: Annotated[str, msgspec.Meta(pattern=r"\A[1-9][0-9]{0,19}\Z")]
    revision: Number = 0

    def __post_init__(self) -> None:
        """Raises ValueError for an ID that is not a uint64."""
        if int(self.cluster_id) >= 1 << 64:
            raise ValueError("not the ID of a cluster")


class Pair(msgspec.Struct, frozen=True):
    """A key with its content."""

    key: bytes
    value: bytes = b""
    mod_revision: Number = 0


class _Range(msgspec.Struct, frozen=True):
    kvs: tuple[Pair, ...] = ()
    more: bool = False


class _Part(msgspec.Struct, frozen=True):
    response_range: _Range | None = None


class TxnAnswer(msgspec.Struct, frozen=True):
    """The answer to a transaction."""

    header: Header
    succeeded: bool = False
    responses: tuple[_Part, ...] = ()


def answer(document: object) -> TxnAnswer:
    """The gateway's answer to a transaction. Raises `AnswerError`."""
    try:
        return msgspec.convert(document, TxnAnswer, strict=False)
    except msgspec.ValidationError:
        raise AnswerError("not an answer to a transaction") from None


def read(group: str) -> Txn:
    """Read a group: limit, halt and slots, all at one revision."""
    return {"compare": [], "success": _reads(group), "failure": []}


def first_key(start: bytes) -> Txn:
    """Read the first of credferry's keys that does not come before ``start``."""
    found = {"key": _b64(start), "range_end": _b64(keys.end(keys.TOP)), "limit": 1, "keys_only": True}
    return {"compare": [], "success": [{"request_range": found}], "failure": []}


def take(group: Group, number: int, content: bytes) -> Txn:
    """Take a slot if the group is as it was read; else read it again.

    The slot must not exist, nobody may have halted the group, and the limit must be the one that was read.
    An absent limit has no revision: somebody may have set it and removed it again. So no slot may have been
    taken since.
    """
    slot, limit = keys.slot_key(group.name, number), keys.limit_key(group.name)
    compare = [_is_absent(slot), _is_absent(keys.halt_key(group.name))]
    if group.limit.revision:
        compare.append(_is_at(limit, group.limit.revision))
    else:
        slots = keys.slots(group.name)
        since = {"target": "MOD", "result": "LESS", "mod_revision": group.revision + 1}
        compare += [_is_absent(limit), {"key": _b64(slots), "range_end": _b64(keys.end(slots)), **since}]
    return {"compare": compare, "success": [_put(slot, content)], "failure": _reads(group.name)}


def keep(group: Group, number: int, revision: int, content: bytes) -> Txn:
    """Write a slot anew that the VM has, if slot and halt are as they were read; else read the group again.

    The slot then has another revision: a release of it that was sent earlier, and arrives late, fails.
    """
    halt = keys.halt_key(group.name)
    compare = [
        _is_at(keys.slot_key(group.name, number), revision),
        _is_absent(halt) if group.halt is None else _is_at(halt, group.halt.revision),
    ]
    put = _put(keys.slot_key(group.name, number), content)
    return {"compare": compare, "success": [put], "failure": _reads(group.name)}


def give_back(group: str, number: int, revision: int) -> Txn:
    """Remove a slot if it is still the one that was taken in this revision."""
    key = keys.slot_key(group, number)
    return {"compare": [_is_at(key, revision)], "success": [_delete(key)], "failure": []}


def halt(group: str, content: bytes) -> Txn:
    """Halt a group that is not halted; else read it."""
    key = keys.halt_key(group)
    return {"compare": [_is_absent(key)], "success": [_put(key, content)], "failure": _reads(group)}


def resume(group: str, revision: int) -> Txn:
    """Remove a halt if it is still the one of this revision."""
    key = keys.halt_key(group)
    return {"compare": [_is_at(key, revision)], "success": [_delete(key)], "failure": []}


def set_limit(group: str, number: int) -> Txn:
    """Set the limit."""
    return {
        "compare": [],
        "success": [_put(keys.limit_key(group), forms.write_limit(number))],
        "failure": [],
    }


def remove_unreadable(group: str, key: bytes, revision: int) -> Txn:
    """Remove a slot's key of any form, if it is still the one of this revision."""
    if not key.startswith(keys.slots(group).encode()):
        raise ValueError("not a key of a slot")
    return {"compare": [_is_at(key, revision)], "success": [_delete(key)], "failure": []}


def key_of(found: TxnAnswer, start: bytes) -> bytes | None:
    """The key in the answer to `first_key`; None if there is none. Raises `AnswerError`."""
    pairs = [pair for part in found.responses if part.response_range for pair in part.response_range.kvs]
    if len(found.responses) != 1 or len(pairs) > 1 or any(pair.key < start for pair in pairs):
        raise AnswerError("an answer with other keys")
    return pairs[0].key if pairs else None


def slot_pairs(found: TxnAnswer) -> tuple[Pair, ...]:
    """All keys of slots in the answer to `read`. Raises `AnswerError`."""
    return _ranges(found)[2].kvs


def group(name: str, found: TxnAnswer) -> Group:
    """The group, from an answer that has what `read` asks for. Raises `AnswerError`."""
    limits, halts, slots = _ranges(found)
    if slots.more:
        raise AnswerError(f"group {name} has more than {_HELD_MAX} slots")
    limit, halted = _only(limits.kvs, keys.limit_key(name)), _only(halts.kvs, keys.halt_key(name))
    return Group(
        name,
        forms.read_limit(None if limit is None else limit.value, 0 if limit is None else limit.mod_revision),
        tuple(_slot(name, each) for each in slots.kvs),
        None if halted is None else forms.read_halt(halted.value, halted.mod_revision),
        found.header.revision,
    )


def _slot(name: str, pair: Pair) -> Slot | UnreadableSlot:
    if not pair.key.startswith(keys.slots(name).encode()):
        raise AnswerError("an answer with other keys")
    number = keys.slot_number(name, pair.key)
    slot = None if number is None else forms.read_slot(number, pair.value, pair.mod_revision)
    return slot or UnreadableSlot(number, pair.mod_revision)


def _ranges(found: TxnAnswer) -> tuple[_Range, _Range, _Range]:
    ranges = [each.response_range for each in found.responses]
    if len(ranges) != 3:  # noqa: PLR2004 (as `_reads` has)
        raise AnswerError("an answer with other parts")
    limit, halted, slots = (each or _Range() for each in ranges)
    return limit, halted, slots


def _only(pairs: Iterable[Pair], key: str) -> Pair | None:
    found = list(pairs)
    if not found:
        return None
    if len(found) > 1 or found[0].key != key.encode() or not found[0].mod_revision:
        raise AnswerError("an answer with other keys")
    return found[0]


def _reads(name: str) -> list[Txn]:
    slots = keys.slots(name)
    return [
        {"request_range": {"key": _b64(keys.limit_key(name))}},
        {"request_range": {"key": _b64(keys.halt_key(name))}},
        {"request_range": {"key": _b64(slots), "range_end": _b64(keys.end(slots)), "limit": _HELD_MAX}},
    ]


def _is_absent(key: str) -> Txn:
    return {"key": _b64(key), "target": "CREATE", "result": "EQUAL", "create_revision": 0}


def _is_at(key: str | bytes, revision: int) -> Txn:
    return {"key": _b64(key), "target": "MOD", "result": "EQUAL", "mod_revision": revision}


def _put(key: str, content: bytes) -> Txn:
    return {"request_put": {"key": _b64(key), "value": _b64(content)}}


def _delete(key: str | bytes) -> Txn:
    return {"request_delete_range": {"key": _b64(key)}}


def _b64(data: str | bytes) -> str:
    return b64encode(data.encode() if isinstance(data, str) else data).decode()
