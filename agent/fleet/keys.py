# SPDX-License-Identifier: MIT
"""The names of a group's keys in etcd."""

from __future__ import annotations

import re
from typing import Final

from credferry.agent.fleet.model import LIMIT_MAX

TOP: Final = "/credferry/1/"
GROUP: Final = re.compile(r"[A-Za-z0-9.-]{1,64}")
"""Also what FleetLock allows in a group's name."""
HOST: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,252}")
_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,3}")


def check_group(group: str) -> str:
    """The group itself. Raises ValueError for a name that a key cannot have."""
    if not GROUP.fullmatch(group):
        raise ValueError("not the name of a group")
    return group


def limit_key(group: str) -> str:
    """The key of the limit."""
    return f"{TOP}{check_group(group)}/limit"


def halt_key(group: str) -> str:
    """The key of the halt."""
    return f"{TOP}{check_group(group)}/halt"


def slots(group: str) -> str:
    """What the keys of all slots of a group begin with."""
    return f"{TOP}{check_group(group)}/slot/"


def hosts(group: str) -> str:
    """What the keys of all hosts of a group begin with."""
    return f"{TOP}{check_group(group)}/host/"


def host_key(group: str, host: str) -> str:
    """The key of a host. Raises ValueError for a name that no host has."""
    if not HOST.fullmatch(host):
        raise ValueError("not the name of a host")
    return f"{hosts(group)}{host}"


def slot_key(group: str, number: int) -> str:
    """The key of a slot. Raises ValueError for a number that no slot has."""
    if not 0 <= number < LIMIT_MAX:
        raise ValueError("not the number of a slot")
    return f"{slots(group)}{number}"


def slot_number(group: str, key: bytes) -> int | None:
    """The number of a slot, from its key. None if no slot has this key: ``slot/07`` is not ``slot/7``."""
    top = slots(group).encode()
    rest = key[len(top) :].decode("ascii", "replace") if key.startswith(top) else ""
    if not _NUMBER.fullmatch(rest) or int(rest) >= LIMIT_MAX:
        return None
    return int(rest)


def group_of(key: bytes) -> str | None:
    """The group to which a key belongs. None for a key that no group has."""
    name, slash, _ = key.removeprefix(TOP.encode()).partition(b"/")
    text = name.decode("ascii", "replace")
    return text if key.startswith(TOP.encode()) and slash and GROUP.fullmatch(text) else None


def after(key: bytes) -> bytes:
    """Where the keys of the next group may begin."""
    group = group_of(key)
    return key + b"\0" if group is None else end(f"{TOP}{group}/").encode()


def end(prefix: str) -> str:
    """The end of the range of all keys that begin with ``prefix``, which ends in an ASCII character."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)
