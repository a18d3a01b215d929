# SPDX-License-Identifier: MIT
"""A push by hand, the whole way: from the source on the host to the unit in a guest that goes on running."""

from __future__ import annotations

import hashlib
import secrets
from typing import TYPE_CHECKING

import pytest

from tests.guest.test_main_job import MACHINE_IDS, SOURCE, seal_for
from tests.support.deployment import Deployment, guest_files
from tests.support.guest import (
    DONE,
    Variant,
    guest,
    receiver,
    sealing_identity,
)
from tests.support.leaks import leaks
from tests.support.live import with_vsock

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.host import Host
    from tests.support.producer import SopsNix

_PUSH = "credferry-push@pushed.service"


@pytest.fixture
def deployment(host: Host) -> Iterator[Deployment]:
    """Nothing laid out yet."""
    made = Deployment(host)
    yield made
    made.close()


def printed(unit: str, value: bytes) -> str:
    """The line that a unit of the guest prints when it starts with a value."""
    return f"credferry-guest: {unit} {hashlib.sha256(value).hexdigest()[:16]}"


def lines(deployment: Deployment) -> list[str]:
    """All lines of the guest's units so far, oldest first."""
    entries = deployment.host.journal(_SYSTEMD_UNIT="microvm@pushed.service")
    every = (line.strip() for entry in entries for line in entry.get("MESSAGE", "").splitlines())
    return [line for line in every if line.startswith("credferry-guest: ")]


def push(host: Host) -> str:
    """Push until no other push is in the way, and return the line that the unit left in the journal."""

    def is_free() -> bool:
        host.run("systemctl", "start", _PUSH, check=False, timeout=180)
        return "handles another push" not in host.journal(_SYSTEMD_UNIT=_PUSH)[-1]["MESSAGE"]

    host.wait(is_free, 60, "a receiver that is free")
    return host.journal(_SYSTEMD_UNIT=_PUSH)[-1]["MESSAGE"]


def test_a_rotated_value_reaches_the_unit_in_the_running_guest(
    deployment: Deployment, sops: SopsNix
) -> None:
    """The unit that loads the value restarts with it; another unit, the guest and the VM go on as they are.

    A second push of the same generation touches nothing. The value is sealed for the guest all the way, and
    is nowhere on the host but in its source.
    """
    host, variant = deployment.host, Variant.BOOKWORM
    old, new = secrets.token_hex(24).encode(), secrets.token_hex(24).encode()
    sops.publish({"api-key": old})
    deployment.configure(
        "[vms.pushed]\nlive = true\nguest_key = true\n[vms.pushed.credentials]\n"
        'K = { secret = "api-key" }\nT = { text = "a text" }\n'
    )
    key = seal_for(deployment, "pushed", variant)
    units = {
        "app": ("K", ["LoadCredentialEncrypted=K:/run/credentials/@system/K"]),
        "other": ("T", ["LoadCredential=T"]),
    }
    overlay = receiver(units) | sealing_identity(MACHINE_IDS[variant], key)
    files = guest_files(deployment, "pushed", guest(variant), overlay)
    deployment.add_vm("pushed", with_vsock(deployment, files))
    deployment.credferry("agent", "--once")
    deployment.start_vm("pushed")
    for line in (printed("app", old), printed("other", b"a text"), DONE):
        deployment.wait_printed("pushed", line)
    invocation = deployment.unit("pushed")["InvocationID"]

    sops.publish({"api-key": new})
    deployment.credferry("agent", "--once")
    assert push(host) == "VM pushed holds generation 2 now: app.service restarted"
    deployment.wait_printed("pushed", printed("app", new))
    told = lines(deployment)
    assert sorted(told) == sorted(
        [printed("app", old), printed("other", b"a text"), DONE, printed("app", new)]
    )
    assert told[-1] == printed("app", new)
    assert deployment.unit("pushed")["InvocationID"] == invocation
    assert push(host) == "VM pushed holds generation 2 now: no unit was affected"
    assert lines(deployment) == told
    assert leaks(host, [old, new], allowed=SOURCE) == []
