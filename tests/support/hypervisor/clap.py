# SPDX-License-Identifier: MIT
"""The argument vector: which options there are, how many values each takes, and what is refused.

After cloud-hypervisor v53's table (cloud-hypervisor/src/main.rs, get_cli_options_sorted) and what its
parser, clap 4, does with it: no abbreviations, single options once only, values never begin with a dash.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class Takes(enum.Enum):
    """How many values an option takes, and whether it may be given again."""

    NOTHING = enum.auto()
    ONE = enum.auto()
    MANY = enum.auto()
    PERHAPS_ONE = enum.auto()
    COUNT = enum.auto()


class UsageError(Exception):
    """What clap prints before it exits with 2."""


_VM_SINGLE = "balloon cmdline console cpus debug-console initramfs memory platform rng serial tpm vsock"
_VM_LISTS = (
    "device disk fs generic-vhost-user landlock-rules memory-zone net numa pci-segment pmem "
    "rate-limit-group user-device vdpa"
)
PAYLOAD = frozenset({"kernel", "firmware"})
VM_OPTIONS: dict[str, Takes] = {
    **dict.fromkeys(_VM_SINGLE.split(), Takes.ONE),
    **dict.fromkeys(_VM_LISTS.split(), Takes.MANY),
    **dict.fromkeys(("landlock", "pvpanic", "watchdog"), Takes.NOTHING),
    "rtc": Takes.PERHAPS_ONE,
}
OPTIONS: dict[str, Takes] = {
    **VM_OPTIONS,
    **dict.fromkeys(
        (
            "api-socket",
            "event-monitor",
            "firmware",
            "kernel",
            "log-file",
            "log-format",
            "restore",
            "seccomp",
        ),
        Takes.ONE,
    ),
    **dict.fromkeys(("no-shutdown", "version", "help"), Takes.NOTHING),
    "v": Takes.COUNT,
}
_SHORT = {"v": "v", "V": "version", "h": "help"}
_SECCOMP = ("true", "false", "log", "errno")


@dataclass(slots=True)
class Arguments:
    """The options given, each with its values in order."""

    values: dict[str, list[str]] = field(default_factory=dict)

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def one(self, name: str) -> str | None:
        """Value of a single option, or None."""
        return next(iter(self.values.get(name, ())), None)

    def many(self, name: str) -> list[str]:
        """Values of a list option, in the order given."""
        return self.values.get(name, [])


def parse(argv: Sequence[str]) -> Arguments:
    """Read an argument vector (without the program's name). Raises `UsageError`."""
    found = Arguments()
    rest = list(argv)
    while rest:
        token = rest.pop(0)
        if token.startswith("--") and len(token) > len("--"):
            name, equals, inline = token[2:].partition("=")
            if name not in OPTIONS or name == "v":
                raise UsageError(f"unexpected argument '--{name}' found")
            _take(found, name, [inline] if equals else None, rest)
        elif token.startswith("-") and token not in {"-", "--"}:
            for letter in token[1:]:
                if letter not in _SHORT:
                    raise UsageError(f"unexpected argument '-{letter}' found")
                _take(found, _SHORT[letter], None, [])
        else:
            raise UsageError(f"unexpected argument '{token}' found")
    _check_groups(found)
    return found


def _take(found: Arguments, name: str, inline: list[str] | None, rest: list[str]) -> None:
    takes = OPTIONS[name]
    shown = f"--{name}" if takes is Takes.NOTHING else f"--{name} <{name}>"
    if takes in {Takes.NOTHING, Takes.COUNT}:
        if inline is not None:
            raise UsageError(f"unexpected value '{inline[0]}' for '{shown}' found; no more were expected")
        _record(found, name, shown, [""])
        return
    values = inline or []
    if inline is None:
        most = len(rest) if takes is Takes.MANY else 1
        while rest and len(values) < most and (rest[0] == "-" or not rest[0].startswith("-")):
            values.append(rest.pop(0))
    if not values and takes is Takes.PERHAPS_ONE:
        values = [""]
    if not values:
        raise UsageError(f"a value is required for '{shown}' but none was supplied")
    if name == "seccomp" and values[0] not in _SECCOMP:
        known = ", ".join(_SECCOMP)
        raise UsageError(f"invalid value '{values[0]}' for '{shown}'\n  [possible values: {known}]")
    _record(found, name, shown, values)


def _record(found: Arguments, name: str, shown: str, values: list[str]) -> None:
    if name in found and OPTIONS[name] not in {Takes.MANY, Takes.COUNT}:
        raise UsageError(f"the argument '{shown}' cannot be used multiple times")
    found.values.setdefault(name, []).extend(values)


def _check_groups(found: Arguments) -> None:
    if "version" in found or "help" in found:
        return
    if not PAYLOAD & found.values.keys() and VM_OPTIONS.keys() & found.values.keys():
        raise UsageError(
            "the following required arguments were not provided:\n"
            "  <--firmware <firmware>|--kernel <kernel>>"
        )
