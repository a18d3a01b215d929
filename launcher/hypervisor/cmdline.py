# SPDX-License-Identifier: MIT
"""Splits a cloud-hypervisor argument vector into options, as its own command line parser (clap) does.

Source for the number of values of each option: cloud-hypervisor src/main.rs, `get_cli_options_sorted`.
Refusals name the option and never a value.
"""

from __future__ import annotations

from credferry.launcher.errors import usage
from credferry.launcher.record import FrozenRecord, field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

SWITCHES: Final = frozenset(
    {"dbus-system-bus", "landlock", "no-shutdown", "pvmemcontrol", "pvpanic", "watchdog"}
)
SINGLE: Final = frozenset(
    {
        "api-socket",
        "balloon",
        "cmdline",
        "console",
        "cpus",
        "dbus-object-path",
        "dbus-service-name",
        "debug-console",
        "event-monitor",
        "firmware",
        "fw-cfg-config",
        "gdb",
        "host-data",
        "igvm",
        "initramfs",
        "ivshmem",
        "kernel",
        "log-file",
        "log-format",
        "memory",
        "platform",
        "restore",
        "rng",
        "seccomp",
        "serial",
        "tpm",
        "vsock",
    }
)
LISTS: Final = frozenset(
    {
        "device",
        "disk",
        "fs",
        "generic-vhost-user",
        "landlock-rules",
        "memory-zone",
        "net",
        "numa",
        "pci-segment",
        "pmem",
        "rate-limit-group",
        "sgx-epc",
        "user-device",
        "vdpa",
    }
)
OPTIONAL_VALUE: Final = frozenset({"rtc"})

VERBOSE: Final = "-v"


class Option(FrozenRecord):
    """One occurrence of an option: its name without dashes, its values, and its original words."""

    name: str
    values: tuple[str, ...] = field(repr=False)
    words: tuple[str, ...] = field(repr=False)

    @property
    def known(self) -> bool:
        """Whether this module knows how many values the option takes."""
        return self.name in SWITCHES | SINGLE | LISTS | OPTIONAL_VALUE or self.is_verbose

    @property
    def is_verbose(self) -> bool:
        """Whether it is ``-v`` (or ``-vv`` …)."""
        return self.name == VERBOSE

    @property
    def shown(self) -> str:
        """The option as an operator would write it, without its values."""
        return self.name if self.name.startswith("-") else f"--{self.name}"


def parse(argv: Sequence[str]) -> list[Option]:
    """The options of an argument vector without its program name, in order.

    For known options, raises `LaunchError` (USAGE) where cloud-hypervisor's own parser would refuse them: a
    missing value, too many values, an option given more than once. Unknown options keep all their words.
    """
    options: list[Option] = []
    seen: set[str] = set()
    rest = list(argv)
    while rest:
        option = _take(rest)
        if option.name not in LISTS and option.known and not option.is_verbose:
            if option.name in seen:
                raise usage(
                    f"{option.shown} is given more than once",
                    "cloud-hypervisor takes it only once: combine the values",
                )
            seen.add(option.name)
        options.append(option)
    return options


def _take(rest: list[str]) -> Option:
    first = rest.pop(0)
    if not _is_option(first) or first == "--":
        raise usage(
            "a word of cloud-hypervisor's command line belongs to no option",
            "quote values that contain spaces, and give cloud-hypervisor nothing but options",
        )
    if not first.startswith("--"):
        name = VERBOSE if set(first[1:]) == {"v"} else first[:2]
        return Option(name, (), (first,))
    name, equals, inline = first[2:].partition("=")
    following: list[str] = []
    if not equals:
        while rest and not _is_option(rest[0]) and len(following) < _most(name):
            following.append(rest.pop(0))
    option = Option(name, (inline,) if equals else tuple(following), (first, *following))
    if name in SWITCHES and option.values:
        raise usage(f"{option.shown} takes no value", "remove the value")
    if name in SINGLE | LISTS and not option.values:
        raise usage(f"{option.shown} has no value", "give it a value, or remove it")
    return option


def _most(name: str) -> int:
    if name in SWITCHES:
        return 0
    return 1 if name in SINGLE | OPTIONAL_VALUE else 1 << 30


def _is_option(word: str) -> bool:
    return word.startswith("-") and word != "-"
