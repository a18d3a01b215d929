# SPDX-License-Identifier: MIT
"""The main job with real guests: what is published on the host is what the guest's own systemd hands out."""

from __future__ import annotations

import hashlib
import re
import secrets
from typing import TYPE_CHECKING

import pytest

from tests.support.deployment import Deployment, guest_files
from tests.support.guest import STABLE, Variant, credential_printer, guest, reboots, sealing_identity
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


SOURCE = re.compile(r"/run/secrets\.d/")


@pytest.fixture
def deployment(host: Host) -> Iterator[Deployment]:
    """Nothing laid out yet."""
    made = Deployment(host)
    yield made
    made.close()


def printed(name: str, value: bytes, variant: Variant) -> str:
    """The line with which a guest tells what it was handed."""
    return (
        f"credferry-guest: {name} sha256={hashlib.sha256(value).hexdigest()[:16]} systemd={variant.systemd}"
    )


def seal_for(deployment: Deployment, vm: str, variant: Variant) -> bytes:
    """Make the guest's key with the operator's command; the file that the guest is to have."""
    deployment.credferry("guest-key", "create", vm, "--machine-id", MACHINE_IDS[variant])
    return deployment.host.path(f"/var/lib/credferry/guest-keys/{vm}.secret").read_bytes()


@pytest.mark.parametrize("channel", variants("api", "command"))
def test_guests_get_what_is_published(deployment: Deployment, sops: SopsNix, channel: str) -> None:
    """Guests with systemd 252 and 257 get sealed values, texts and, over the API, plain values as well.

    Then the plain or, in the command channel, the sealed secret of one VM rotates: its guest boots with the
    new value, and the other VM is left alone. All the while no value is anywhere but in the source and in
    the VM unit's own credentials.
    """
    values = {name: secrets.token_hex(24).encode() for name in ("plain", "sealed-bookworm", "sealed-trixie")}
    sops.publish(values)
    plain = 'P = { secret = "plain", seal = false }\n' if channel == "api" else ""
    deployment.configure(
        "".join(
            f'[vms.{variant}]\nchannel = "{channel}"\nguest_key = true\n[vms.{variant}.credentials]\n'
            f'S = {{ secret = "sealed-{variant}" }}\nT = {{ text = "{channel}" }}\n'
            for variant in STABLE
        )
        + plain
    )
    for variant in STABLE:
        key = seal_for(deployment, variant, variant)
        printer = credential_printer(plain=["T", "P"] if plain else ["T"], sealed=["S"])
        overlay = printer | sealing_identity(MACHINE_IDS[variant], key)
        deployment.add_vm(variant, guest_files(deployment, variant, guest(variant), overlay))
    deployment.credferry("agent", "--once")
    deployment.start_vm(*STABLE)
    deployment.start_agent()
    # What is sealed for the guest is not readable in the credentials of the VM's unit either.
    assert leaks(deployment.host, [values[f"sealed-{each}"] for each in STABLE], allowed=SOURCE) == []
    for variant in STABLE:
        deployment.wait_printed(variant, printed("S", values[f"sealed-{variant}"], variant))
        deployment.wait_printed(variant, printed("T", channel.encode(), variant))
    if plain:
        deployment.wait_printed(Variant.TRIXIE, printed("P", values["plain"], Variant.TRIXIE))
    assert leaks(deployment.host, values.values()) == []

    rotated = "plain" if plain else "sealed-trixie"
    values[rotated] = secrets.token_hex(24).encode()
    sops.publish(values)
    name = "P" if plain else "S"
    deployment.wait_printed(Variant.TRIXIE, printed(name, values[rotated], Variant.TRIXIE))
    deployment.wait_in_step(Variant.TRIXIE)
    assert (deployment.starts(Variant.TRIXIE), deployment.starts(Variant.BOOKWORM)) == (2, 1)
    assert leaks(deployment.host, values.values()) == []


@pytest.mark.parametrize("channel", variants("api", "command"))
def test_a_guest_that_reboots_gets_the_newest_values(
    deployment: Deployment, sops: SopsNix, channel: str
) -> None:
    """The hypervisor would boot it again with the strings it had; it is started anew instead."""
    first, second = f"first for {channel}".encode(), f"second for {channel}".encode()
    sops.publish({"api-key": first})
    sealed = "guest_key = true\n" if channel == "command" else ""
    deployment.configure(
        f'[vms.web]\nchannel = "{channel}"\n{sealed}[vms.web.credentials]\nK = {{ secret = "api-key" }}\n'
    )
    if sealed:
        key = seal_for(deployment, "web", Variant.BOOKWORM)
        printer = credential_printer(sealed=["K"]) | sealing_identity(MACHINE_IDS[Variant.BOOKWORM], key)
    else:
        printer = credential_printer(plain=["K"])
    files = guest_files(deployment, "web", guest(Variant.BOOKWORM), printer | reboots())
    deployment.add_vm("web", files)
    deployment.credferry("agent", "--once")
    deployment.start_vm("web")
    sops.publish({"api-key": second})
    deployment.credferry("agent", "--once")
    deployment.wait_printed("web", printed("K", first, Variant.BOOKWORM))
    deployment.wait_printed("web", printed("K", second, Variant.BOOKWORM))
    assert deployment.starts("web") >= 2
    assert "guest reboot" in deployment.credferry("audit", "--vm", "web")
