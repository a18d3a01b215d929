# SPDX-License-Identifier: MIT
"""``--check``: checks a command line before any VM starts with it.

The plan makes the checks: a VM's start would refuse the same arguments with the same line. The smallest
possible values stand in for the real ones. If they exceed a limit, any values would.
"""

from __future__ import annotations

import binascii

from credferry.launcher import oem
from credferry.launcher.credentials import Credential, Delivered
from credferry.launcher.errors import usage
from credferry.launcher.handoff import (
    LAUNCHED,
    Channel,
    Delivery,
    Kind,
    Manifest,
    ManifestEntry,
    Secret,
    is_credential_name,
)
from credferry.launcher.record import FrozenRecord

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container, Mapping
    from typing import Final

_KINDS: Final = Kind.PLAIN.value
_VM: Final = "VM"
_DIGITS_MAX: Final = 4


class AssumedVm(FrozenRecord):
    """The assumed configuration of a VM: how credentials travel, and their names and kinds."""

    delivery: Delivery
    credentials: tuple[tuple[str, Kind], ...]


def assume(flags: Container[str], values: Mapping[str, str]) -> AssumedVm:
    """The configuration that the options of ``--check`` describe. Raises `LaunchError` (USAGE)."""
    channel = values.get("--channel", Channel.API.value)
    if channel not in {each.value for each in LAUNCHED}:
        raise usage("--channel is neither api nor command", "give one of them")
    credentials = _credentials(values.get("--kinds", _KINDS))
    if "--major" in values:
        _number("--major", values["--major"])
    systemd = values.get("--guest-systemd")
    delivery = Delivery(
        channel=Channel(channel),
        guest_systemd=Delivery().guest_systemd if systemd is None else _number("--guest-systemd", systemd),
        plaintext_in_argv="--plaintext-in-argv" in flags,
        allowed_names=tuple(name for name, _ in credentials),  # the agent's configuration checks names
        initrd="--initrd" in flags,
    )
    return AssumedVm(delivery, credentials)


def delivered(assumed: AssumedVm, vm: str | None) -> Delivered:
    """A generation with these credentials, each as small as possible."""
    credentials = tuple(Credential(name, kind, _least(name, kind)) for name, kind in assumed.credentials)
    manifest = Manifest(
        vm=vm or _VM,
        generation=0,
        digest="0" * 64,
        run="0" * 32,
        delivery=assumed.delivery,
        credentials=tuple(ManifestEntry(name, kind, "0" * 16) for name, kind in assumed.credentials),
    )
    return Delivered(manifest, credentials)


def _credentials(text: str) -> tuple[tuple[str, Kind], ...]:
    found: dict[str, Kind] = {}
    for word in filter(None, text.split(",")):
        name, equals, kind = word.rpartition("=")
        if kind not in {each.value for each in Kind} or (equals and not is_credential_name(name)):
            raise usage(
                "--kinds is not a list of plain, sealed and text",
                "write plain,sealed or NAME=plain,NAME=sealed",
            )
        found[name or kind] = Kind(kind)
    return tuple(found.items())


def _least(name: str, kind: Kind) -> Secret:
    if kind is not Kind.SEALED:
        return Secret(b"-")
    blob = oem.SEALED_START.ljust(oem.sealed_least(name) + 1, b"\0")
    return Secret(binascii.b2a_base64(blob, newline=False))


def _number(option: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= _DIGITS_MAX):
        raise usage(f"{option} is not a number", "give a major version, such as 53")
    return int(text)
