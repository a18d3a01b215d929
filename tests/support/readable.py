# SPDX-License-Identifier: MIT
"""What users of a host can read of what credferry does there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from credferry.agent.control.interface import AGENT_INTERFACE, NAME, PATH, vm_path

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.support.host import Host

_TOPS: Final = ("/run", "/tmp", "/etc/credferry", "/var/lib/credferry", "/var/lib/microvms")
_OWN_VALUES: Final = "/run/credentials/*/credferry_value.*"
"""A VM's user has the values of its VMs."""
_SIZE_MAX: Final = "-8192k"
_PAGE: Final = "/run/readable.html"
_COMMANDS: Final = (
    ("credferry", "status"),
    ("credferry", "status", "--json"),
    ("credferry", "plan", "--json"),
    ("credferry", "doctor", "--json"),
    ("credferry", "audit"),
    ("credferry", "audit", "--json"),
    ("credferry", "audit", "--records", "--json"),
    ("credferry", "audit", "--records", "--csv"),
    ("credferry", "audit", "--periods", "--csv"),
    ("sh", "-c", f"credferry audit --html {_PAGE} && cat {_PAGE} && rm {_PAGE}"),
    ("journalctl", "--all", "--output=export"),
    ("systemctl", "show", "--all", "--", "*"),
)


def printed(host: Host) -> dict[str, str]:
    """What root's commands print, by command. Operators pass it on: to tickets, and to other hosts."""
    host.run("journalctl", "--sync")
    return {" ".join(command): host.run(*command, check=False).stdout for command in _COMMANDS}


def answered(host: Host, user: str, vms: Iterable[str]) -> dict[str, str]:
    """What the agent answers to a user, over the bus and by ``credferry status``, by command."""
    commands = [
        ("credferry", "status", "--json"),
        ("busctl", "call", NAME, PATH, "org.freedesktop.DBus.ObjectManager", "GetManagedObjects"),
        ("busctl", "call", NAME, PATH, AGENT_INTERFACE, "Plan"),
        *(("busctl", "--full", "introspect", NAME, path) for path in (PATH, *map(vm_path, vms))),
    ]
    return {f"{user}: {' '.join(each)}": host.run(*each, user=user).stdout for each in commands}


def files(host: Host, user: str) -> str:
    """Names and content of the files that a user can read, in one text."""
    kept = ("-type", "f", "-readable", "-size", _SIZE_MAX, "!", "-path", _OWN_VALUES)
    shown = ("-print", "-exec", "cat", "{}", "+")
    return host.run("find", *_TOPS, *kept, *shown, user=user, check=False).stdout
