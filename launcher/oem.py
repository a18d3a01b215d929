# SPDX-License-Identifier: MIT
"""Checks of every limit on a credential's way into the guest, made before anything starts.

A refusal names the credential, the limit and the remedies. It never shows a value or a value's length.
"""

from __future__ import annotations

import binascii
import os

from credferry.launcher.errors import Exit, LaunchError
from credferry.launcher.handoff import (
    NAME_MAX,
    OEM_COUNT_MAX,
    SYSTEMD_READS_ALL_OEM_STRINGS,
    Kind,
    is_credential_name,
    is_powerful_name,
    oem_size,
)
from credferry.launcher.hypervisor.options import WHITESPACE, OptionError, plain, words

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Final

    from credferry.launcher.credentials import Credential
    from credferry.launcher.handoff import Delivery
    from credferry.launcher.hypervisor.options import Grammar

BODY_MAX: Final = 51_200
"""Bytes of an API request's body up to v53 (micro_http's MAX_PAYLOAD_SIZE, src/server.rs)."""
BODY_MAX_AFTER_53: Final = 4 << 20
"""Bytes of an API request's body after v53 (cloud-hypervisor commit 247fa0c1a91f)."""
_LAST_WITH_SMALL_BODY: Final = 53

ARGUMENT_MAX: Final = 128 << 10
"""Bytes of one argument with its NUL (Linux MAX_ARG_STRLEN)."""

_ARCHITECTURE: Final = "x86_64"
SEALED_START: Final = bytes.fromhex("5a1c6a86df9d4096b1d5a65e0862f19a 20000000 01000000 0c000000 10000000")
"""First bytes of a systemd credential that is sealed with a guest's own key: the key type's ID, and the
sizes of key, block, IV and tag (systemd src/shared/creds-util.c). The agent uses only this type for guests.
Other types need a TPM or a user of the guest, or use the null key, which proves nothing."""
_IV_END: Final = 44
_HEADER: Final = 48
_METADATA: Final = 20
_TAG: Final = 16
_CONFIDENTIAL: Final = frozenset({"sev_snp", "tdx"})
_OFF: Final = frozenset({"", "false", "off"})
_GUEST_STRINGS: Final = ("io.systemd.credential:", "io.systemd.credential.binary:")


def check(credentials: Sequence[Credential], existing: Sequence[str], delivery: Delivery) -> None:
    """Refuse credentials that would not reach the guest complete. Raises `LaunchError` (CREDENTIALS).

    ``existing`` are the OEM strings that the command line already has.
    """
    for credential in credentials:
        _check_one(credential, delivery)
    _check_names(credentials, existing)
    strings = [credential for credential in credentials if delivery.is_oem(credential.kind)]
    if "" in existing:
        raise _refuse(
            "--platform has an empty OEM string",
            "it would end the guest's list of strings before all others: remove it",
        )
    for index, credential in enumerate(strings):
        if len(existing) + index + 1 > OEM_COUNT_MAX:
            raise _refuse(
                f"credential {credential.name} is one too many: a VM has at most {OEM_COUNT_MAX} OEM "
                "strings",
                "pass fewer credentials",
            )
    limit = delivery.oem_total_max
    used = oem_size(os.fsencode(string) for string in existing)
    if used > limit:
        raise _refuse(
            f"the OEM strings of --platform alone exceed the guest's limit of {limit} bytes",
            _ways_out(delivery),
        )
    for name, size in _sizes(strings):
        used += size
        if used > limit:
            raise _refuse(
                f"credential {name} does not fit: all OEM strings of the VM can have {limit} bytes",
                _ways_out(delivery),
            )


def check_machine(machine: str) -> None:
    """Refuse machines on which cloud-hypervisor has no OEM strings. Raises `LaunchError` (CREDENTIALS)."""
    if machine != _ARCHITECTURE:
        raise _refuse(
            f"cloud-hypervisor has no OEM strings on {machine}",
            f"credentials reach guests only on {_ARCHITECTURE} hosts",
        )


def body_max(major: int) -> int:
    """The most bytes that this cloud-hypervisor takes as the body of an API request."""
    return BODY_MAX if major <= _LAST_WITH_SMALL_BODY else BODY_MAX_AFTER_53


def check_trusted(
    credentials: Sequence[Credential], platform: str, grammar: Grammar, *, is_igvm: bool
) -> None:
    """Refuse OEM strings for a confidential guest. Raises `LaunchError` (CREDENTIALS).

    In a confidential guest, systemd since v254 takes nothing from SMBIOS, as it does not trust the host
    (src/core/import-creds.c). It does take credentials from its initrd.
    """
    word = "--igvm" if is_igvm else _confidential(platform, grammar)
    if word is not None and credentials:
        raise _refuse(
            f"credential {credentials[0].name} would not arrive: {word} makes the guest confidential, "
            "and systemd in such a guest ignores OEM strings",
            'seal every value for the guest (seal = true, also for texts), and set channel = "command" and '
            "initrd = true: they then travel in the initramfs that --initramfs names",
        )


def _confidential(platform: str, grammar: Grammar) -> str | None:
    """The ``--platform`` setting that makes the guest confidential, or None."""
    try:
        said = dict(words(platform, grammar))  # the last one counts
    except OptionError:
        return None  # another check refuses this value
    on = (
        key
        for key, value in said.items()
        if key in _CONFIDENTIAL and plain(value or "", grammar).strip(WHITESPACE).lower() not in _OFF
    )
    found = min(on, default=None)
    return None if found is None else f"--platform {found}=on"


def check_body(size: int, credentials: Sequence[Credential], major: int) -> None:
    """Refuse a ``vm.create`` body that is too large for cloud-hypervisor. Raises `LaunchError`."""
    limit = body_max(major)
    if size <= limit:
        return
    # In JSON, a credential's string takes two quotes and a comma. None of its characters needs an escape.
    before = size - sum(length + 2 for _, length in _sizes(credentials))
    if before > limit:
        raise _refuse(
            f"the configuration exceeds the {limit} bytes that cloud-hypervisor {major} accepts in a "
            "request",
            "make the command line shorter, or use a cloud-hypervisor later than 53",
        )
    for name, length in _sizes(credentials):
        before += length + 2
        if before > limit:
            raise _refuse(
                f"credential {name} does not fit: cloud-hypervisor {major} accepts {limit} bytes in a "
                "request",
                "pass fewer or smaller credentials, or use a cloud-hypervisor later than 53",
            )


def check_arguments(words: Iterable[str]) -> None:
    """Refuse an argument that is too long for the kernel, as `execve` would report only E2BIG."""
    option = "an argument"
    for word in words:
        if word.startswith("--"):
            option = word.partition("=")[0]
        if len(os.fsencode(word)) + 1 > ARGUMENT_MAX:
            raise _refuse(
                f"{option} does not fit: one argument can have {ARGUMENT_MAX} bytes",
                "pass fewer or smaller credentials, or use the api channel",
            )


def _check_one(credential: Credential, delivery: Delivery) -> None:
    name = credential.name
    if not is_credential_name(name):
        raise _refuse(
            "a credential's name is not valid",
            f"use 1 to {NAME_MAX} characters of A-Z a-z 0-9 . _ -",
        )
    if is_powerful_name(name) and name not in delivery.allowed_names:
        raise _refuse(
            f"credential {name} gives power over the guest's system",
            "if you want this, add it to the VM's list of allowed names; or rename it",
        )
    if credential.kind is Kind.SEALED and not _is_sealed(name, credential.value.reveal()):
        raise _refuse(
            f"credential {name} is not sealed for the guest: not a systemd credential in Base64 on one line",
            "make the agent seal the VM again",
        )


def sealed_least(name: str) -> int:
    """Bytes of the smallest possible credential that is sealed under this name."""
    return _HEADER + (_METADATA + len(name) + 7) // 8 * 8 + _TAG


def _is_sealed(name: str, blob: bytes) -> bool:
    """Whether this looks like a credential sealed for the guest under this name, in Base64 on one line."""
    try:
        data = binascii.a2b_base64(blob, strict_mode=True)
    except binascii.Error:
        return False
    return (
        data.startswith(SEALED_START) and not any(data[_IV_END:_HEADER]) and len(data) >= sealed_least(name)
    )


def _check_names(credentials: Sequence[Credential], existing: Sequence[str]) -> None:
    there = {name for string in existing if (name := _named(string)) is not None}
    for credential in credentials:
        if credential.name in there:
            raise _refuse(
                f"credential {credential.name} is given twice, or is already in --platform",
                "the guest takes the first and ignores the other: remove one",
            )
        there.add(credential.name)


def _named(string: str) -> str | None:
    """Name of the credential that the guest's systemd reads from an OEM string, or None."""
    for prefix in _GUEST_STRINGS:
        if string.startswith(prefix):
            name, equals, _ = string.removeprefix(prefix).partition("=")
            return name if equals else None
    return None


def _sizes(credentials: Sequence[Credential]) -> list[tuple[str, int]]:
    return [(credential.name, oem_size([credential.string.reveal()])) for credential in credentials]


def _ways_out(delivery: Delivery) -> str:
    if delivery.guest_systemd < SYSTEMD_READS_ALL_OEM_STRINGS:
        enough = SYSTEMD_READS_ALL_OEM_STRINGS
        return (
            f"a guest older than systemd {enough} silently ignores the rest: if it is that new, set "
            f"guest_systemd = {enough}; or pass fewer or smaller credentials; or seal them for the "
            "guest and send them in its initrd (initrd = true)"
        )
    return "pass fewer or smaller credentials, or send sealed ones in the initrd (initrd = true)"


def _refuse(message: str, hint: str) -> LaunchError:
    return LaunchError(message, hint=hint, status=Exit.CREDENTIALS)
