# SPDX-License-Identifier: MIT
"""How slots, halts and limits are written in etcd. Every user of the etcd can write them.

So nothing is trusted. What is not of the exact form is unreadable: an unreadable slot is held, an unreadable
halt halts, and with an unreadable limit nobody gets a slot. Additional fields are allowed, so that a later
release can add some.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Final, TypeVar

import msgspec

from credferry.agent.fleet.model import (
    LIMIT_MAX,
    BadLimit,
    Halt,
    Holder,
    Limit,
    Slot,
    UnreadableHalt,
)
from credferry.agent.printable import printable

SIZE_MAX: Final = 2048
"""Bytes of a slot or a halt."""
WHY_MAX: Final = 200
"""Characters of the reason of a halt."""
_LIMIT: Final = re.compile(rb"[1-9][0-9]{0,3}")
_Host = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,252}\Z")]
_Vm = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}\Z|^\Z")]
_Machine = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
_Change = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9-]{0,64}\Z")]
_Since = Annotated[float, msgspec.Meta(ge=0, le=1e11)]


class _Slot(msgspec.Struct, frozen=True, kw_only=True):
    host: _Host
    vm: _Vm
    machine: _Machine
    change: _Change
    since: _Since


class _Halt(_Slot, frozen=True, kw_only=True):
    why: Annotated[str, msgspec.Meta(max_length=WHY_MAX)]


_S = TypeVar("_S", bound=_Slot)


def write_slot(holder: Holder, change: str, since: float) -> bytes:
    """A slot as JSON. Raises ValueError for what `read_slot` would not read."""
    return _written(
        _Slot(host=holder.host, vm=holder.vm, machine=holder.machine, change=change, since=_moment(since))
    )


def write_halt(holder: Holder, change: str, since: float, why: str) -> bytes:
    """A halt as JSON. The reason is made printable, and shortened. Raises ValueError as `write_slot`."""
    return _written(
        _Halt(
            host=holder.host,
            vm=holder.vm,
            machine=holder.machine,
            change=change,
            since=_moment(since),
            why=printable(why)[:WHY_MAX],
        )
    )


def read_slot(number: int, content: bytes, revision: int) -> Slot | None:
    """A slot from its JSON; None if it cannot be read."""
    found = _read(content, _Slot)
    if found is None or not found.vm:
        return None
    return Slot(number, _holder(found), found.change, found.since, revision)


def read_halt(content: bytes, revision: int) -> Halt | UnreadableHalt:
    """A halt from its JSON. Its reason is printable."""
    found = _read(content, _Halt)
    if found is None:
        return UnreadableHalt(revision)
    return Halt(printable(found.why), _holder(found), found.change, found.since, revision)


def write_limit(number: int) -> bytes:
    """A limit. Raises ValueError for one that `read_limit` would not read."""
    if not 1 <= number <= LIMIT_MAX:
        raise ValueError(f"a limit is a number from 1 to {LIMIT_MAX}")
    return str(number).encode()


def read_limit(content: bytes | None, revision: int) -> Limit | BadLimit:
    """A limit from its content; None is an absent key, which means 1."""
    if content is None:
        return Limit(1, 0)
    if not _LIMIT.fullmatch(content) or int(content) > LIMIT_MAX:
        return BadLimit(revision)
    return Limit(int(content), revision)


def _moment(since: float) -> float:
    """A moment that can be read again, whatever the clock says. It is for display only."""
    return min(max(since, 0.0), 1e11) if math.isfinite(since) else 0.0


def _written(found: _Slot) -> bytes:
    content = msgspec.json.encode(found)
    if _read(content, type(found)) is None:
        raise ValueError("not a holder that can be written")
    return content


def _read(content: bytes, kind: type[_S]) -> _S | None:
    if len(content) > SIZE_MAX:
        return None
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _holder(found: _Slot) -> Holder:
    return Holder(found.host, found.vm, found.machine)
