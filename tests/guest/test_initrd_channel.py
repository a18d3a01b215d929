# SPDX-License-Identifier: MIT
"""Sealed credentials in the guest's initrd: ten times what SMBIOS would carry to an old guest."""

from __future__ import annotations

import dataclasses
import hashlib
import secrets
from typing import TYPE_CHECKING

import pytest

from tests.support.deployment import Deployment, guest_files
from tests.support.guest import (
    OverlayEntry,
    OverlayFile,
    OverlayLink,
    Variant,
    credential_printer,
    guest,
    sealing_identity,
)
from tests.support.leaks import leaks
from tests.support.nightly import variants

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.host import Host
    from tests.support.producer import SopsNix

MACHINE_IDS = {
    Variant.BOOKWORM: "5ea1ed00c0ffee00c0ffee0000000252",
    Variant.TRIXIE: "5ea1ed00c0ffee00c0ffee0000000257",
}
NAMES = [f"S{index}" for index in range(10)]
GUESTS = variants(Variant.BOOKWORM, Variant.TRIXIE)
MARKER = secrets.token_hex(8)
"""What every value of this run begins and ends with, so that one search finds all of them."""


def fresh() -> bytes:
    """A value of 4,000 bytes that there has never been."""
    return f"{MARKER}{secrets.token_hex(1984)}{MARKER}".encode()


@pytest.fixture
def deployment(host: Host) -> Iterator[Deployment]:
    """Nothing laid out yet."""
    made = Deployment(host)
    yield made
    made.close()


def initrd_printer() -> dict[str, OverlayEntry]:
    """The printer in an initrd whose PID 1 imports credentials: sealed ones are loaded by name alone."""
    overlay = credential_printer(plain=["T"], sealed=NAMES)
    for path, entry in overlay.items():
        if isinstance(entry, OverlayFile):
            content = entry.content
            for name in NAMES:
                content = content.replace(f"{name}:/run/credentials/@system/{name}".encode(), name.encode())
            overlay[path] = dataclasses.replace(entry, content=content)
    return overlay | {
        "/etc/initrd-release": OverlayFile(b"ID=credferry-guest\n"),
        "/etc/systemd/system/initrd.target": OverlayLink("credferry-guest.target"),
    }


@pytest.mark.parametrize("channel", variants("api", "command"))
def test_40_kilobytes_of_sealed_credentials_reach_guests_in_their_initrd(
    deployment: Deployment, sops: SopsNix, channel: str
) -> None:
    """On systemd 252, and 257 at night. One of them rotates, and its guest boots with the new value.

    No value is anywhere but in the source and in the VM unit's own credentials, and no copy of the initramfs
    has a name.
    """
    values = {f"{variant}-{name}": fresh() for variant in GUESTS for name in NAMES}
    assert sum(len(value) for value in values.values()) == len(GUESTS) * 40_000
    sops.publish(values)
    text = ""
    for variant in GUESTS:
        text += f'[vms.{variant}]\nchannel = "{channel}"\nguest_key = true\ninitrd = true\n'
        text += f'[vms.{variant}.credentials]\nT = {{ text = "a text" }}\n'
        text += "".join(f'{name} = {{ secret = "{variant}-{name}" }}\n' for name in NAMES)
    deployment.configure(text)
    for variant in GUESTS:
        deployment.credferry("guest-key", "create", variant, "--machine-id", MACHINE_IDS[variant])
        key = deployment.host.path(f"/var/lib/credferry/guest-keys/{variant}.secret").read_bytes()
        overlay = initrd_printer() | sealing_identity(MACHINE_IDS[variant], key)
        deployment.add_vm(variant, guest_files(deployment, variant, guest(variant), overlay))
    deployment.credferry("agent", "--once")
    deployment.start_vm(*GUESTS)
    deployment.start_agent()

    def wait_printed(variant: Variant, name: str, value: bytes) -> None:
        digest = hashlib.sha256(value).hexdigest()[:16]
        deployment.wait_printed(
            variant, f"credferry-guest: {name} sha256={digest} systemd={variant.systemd}"
        )

    for variant in GUESTS:
        wait_printed(variant, "T", b"a text")
        for name in NAMES:
            wait_printed(variant, name, values[f"{variant}-{name}"])
        run = deployment.host.path(f"/run/credferry-vms/{variant}")
        assert {path.name for path in run.iterdir()} <= {"stamp.json", "api.sock"}
    values["bookworm-S7"] = fresh()
    sops.publish(values)
    wait_printed(Variant.BOOKWORM, "S7", values["bookworm-S7"])
    deployment.wait_in_step(Variant.BOOKWORM)
    assert [deployment.starts(each) for each in GUESTS] == [2, 1][: len(GUESTS)]
    assert leaks(deployment.host, [MARKER.encode()]) == []
