# SPDX-License-Identifier: MIT
"""A push by hand, the whole way: from the source on the host to the unit in a guest that goes on running."""

from __future__ import annotations

import hashlib
import secrets
import socket
from typing import TYPE_CHECKING

import pytest

from credferry.launcher.errors import Exit
from tests.guest.test_main_job import MACHINE_IDS, SOURCE, seal_for
from tests.support.deployment import Deployment, guest_files
from tests.support.guest import (
    DONE,
    SHELL_PORT,
    Variant,
    guest,
    receiver,
    sealing_identity,
    shell,
)
from tests.support.leaks import leaks
from tests.support.live import with_vsock
from tests.support.nightly import variants

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.host import Host
    from tests.support.producer import SopsNix

# When the unit restarts, so during a push, the guest does what the file says, and the unit waits.
_GOES_DOWN = """\
ExecStartPre=/bin/sh -c '[ ! -e /run/how ] || { systemctl --no-block $$(cat /run/how) && sleep infinity; }'
"""


@pytest.fixture
def deployment(host: Host) -> Iterator[Deployment]:
    """Nothing laid out yet."""
    made = Deployment(host)
    yield made
    made.close()


def printed(unit: str, value: bytes) -> str:
    """The line that a unit of the guest prints when it starts with a value."""
    return f"credferry-guest: {unit} {hashlib.sha256(value).hexdigest()[:16]}"


def lines(deployment: Deployment, vm: str) -> list[str]:
    """All lines of a guest's units so far, oldest first."""
    entries = deployment.host.journal(_SYSTEMD_UNIT=f"microvm@{vm}.service")
    every = (line.strip() for entry in entries for line in entry.get("MESSAGE", "").splitlines())
    return [line for line in every if line.startswith("credferry-guest: ")]


def push(host: Host, vm: str) -> str:
    """Push until a receiver takes it, and return the line that the unit left in the journal.

    While one handles another push or has yet to end, or the guest is slow to start it, a later push is due.
    """
    unit = f"credferry-push@{vm}.service"

    def is_free() -> bool:
        host.run("systemctl", "start", unit, check=False, timeout=180)
        return host.unit(unit)["ExecMainStatus"] != str(int(Exit.LATER))

    host.wait(is_free, 60, "a receiver that is free")
    return host.journal(_SYSTEMD_UNIT=unit)[-1]["MESSAGE"]


def run_in_guest(host: Host, vm: str, script: str) -> None:
    """Have a shell of root's in the guest run a script, and wait for its end."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(180)
        connection.connect(str(host.path(f"/var/lib/microvms/{vm}/work/notify.vsock")))
        connection.sendall(b"CONNECT %d\n" % SHELL_PORT)
        with connection.makefile("r", encoding="ascii") as lines:
            assert lines.readline().startswith("OK ")
            connection.sendall(f"{script}\nexit\n".encode())
            assert lines.read() == ""


@pytest.mark.parametrize("how", variants("", "reboot", "poweroff"))
def test_a_rotated_value_reaches_the_unit_in_the_running_guest(
    deployment: Deployment, sops: SopsNix, how: str
) -> None:
    """The unit that loads the value restarts with it; another unit, the guest and the VM go on as they are.

    A second push of the same generation touches nothing. If the guest reboots or powers off during a push
    (shown at night), it boots with the newest value, once. The value is sealed for the guest all the way,
    and is nowhere on the host but in its source.
    """
    host, variant = deployment.host, Variant.BOOKWORM
    vm = f"pushed{how}"  # the journal has the lines of all variants
    old, new = (secrets.token_hex(24).replace("b", "x").encode() for _ in range(2))  # none with "bad" in it
    sops.publish({"api-key": old})
    deployment.configure(
        f"[vms.{vm}]\nlive = true\nguest_key = true\n[vms.{vm}.credentials]\n"
        'K = { secret = "api-key" }\nT = { text = "a text" }\n'
    )
    key = seal_for(deployment, vm, variant)
    units = {
        "app": ("K", ["LoadCredentialEncrypted=K:/run/credentials/@system/K", _GOES_DOWN]),
        "other": ("T", ["LoadCredential=T"]),
    }
    overlay = receiver(units) | shell() | sealing_identity(MACHINE_IDS[variant], key)
    files = guest_files(deployment, vm, guest(variant), overlay)
    deployment.add_vm(vm, with_vsock(deployment, files))
    deployment.credferry("agent", "--once")
    deployment.start_vm(vm)
    for line in (printed("app", old), printed("other", b"a text"), DONE):
        deployment.wait_printed(vm, line)
    invocation = deployment.unit(vm)["InvocationID"]

    sops.publish({"api-key": new})
    deployment.credferry("agent", "--once")
    assert push(host, vm) == f"VM {vm} holds generation 2 now: app.service restarted"
    deployment.wait_printed(vm, printed("app", new))
    told = lines(deployment, vm)
    assert sorted(told) == sorted(
        [printed("app", old), printed("other", b"a text"), DONE, printed("app", new)]
    )
    assert told[-1] == printed("app", new)
    assert deployment.unit(vm)["InvocationID"] == invocation
    assert push(host, vm) == f"VM {vm} holds generation 2 now: no unit was affected"
    assert lines(deployment, vm) == told

    assert leaks(host, [old, new], allowed=SOURCE) == []
    if not how:
        return

    deployment.start_agent()
    deployment.wait_in_step(vm, 60)
    run_in_guest(host, vm, f"echo {how} >/run/how")
    newest = secrets.token_hex(24).replace("b", "x").encode()
    sops.publish({"api-key": newest})
    deployment.wait_printed(vm, printed("app", newest), 180)
    deployment.wait_in_step(vm, 60)
    row = deployment.status()[vm]
    assert (row["running"]["generation"], row["sealed"]["generation"]) == (3, 3)
    assert deployment.starts(vm) == 2
    assert lines(deployment, vm).count(printed("app", newest)) == 1
    assert leaks(host, [old, new, newest], allowed=SOURCE) == []
