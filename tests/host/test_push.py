# SPDX-License-Identifier: MIT
"""A push by hand: the real unit, with PID 1's credentials, to a guest behind the VM's vsock socket."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import TYPE_CHECKING

import pytest

from tests.support.deployment import LIGHT_KERNEL, Deployment, VmFiles
from tests.support.installation import CHECKOUT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.host import Host
    from tests.support.producer import SopsNix

GUEST = "/usr/lib/credferry-test/push_guest.py"
NOTES = "pushed.json"
WORK = "/var/lib/microvms/web/work"
SOCKET = "notify.vsock"
PUSH = "credferry-push@web.service"
UNIT = "microvm@web.service"


@pytest.fixture
def deployment(host: Host) -> Iterator[Deployment]:
    """A live VM `web` with one credential. Its stand-in hypervisor has no vsock device of its own."""
    made = Deployment(host)
    host.write(GUEST, (CHECKOUT / "tests/support/push_guest.py").read_bytes())
    made.configure('[vms.web]\nlive = true\n[vms.web.credentials]\nAPI_KEY = { secret = "api-key" }\n')
    yield made
    made.close()


def start_vm(
    deployment: Deployment, mode: str = "good", *, guest: bool = True, is_sealed: bool = False
) -> None:
    """Seal for the VM, unless that is done, and start it, with a guest in its unit that listens."""
    before = f"/usr/bin/python3 -IS {GUEST} {SOCKET} {NOTES} '{mode}' &\n" if guest else ""
    arguments = ("--kernel", LIGHT_KERNEL, "--memory", "size=64M", "--vsock", f"cid=5,socket={SOCKET}")
    deployment.add_vm("web", VmFiles(arguments=arguments, before=before))
    if not is_sealed:
        deployment.credferry("agent", "--once")
    deployment.start_vm("web")
    if guest:
        wait_listening(deployment.host)


def wait_listening(host: Host) -> None:
    """Wait until somebody listens at the VM's vsock socket."""
    host.wait(lambda: SOCKET in host.run("ss", "-Hlx").stdout, 20, "a listener")


def push(host: Host) -> tuple[int, str]:
    """The status of the push unit's program, and its lines in the journal."""
    host.run("systemctl", "start", PUSH, check=False)
    lines = [entry["MESSAGE"] for entry in host.journal(_SYSTEMD_UNIT=PUSH)]
    return int(host.unit(PUSH)["ExecMainStatus"]), lines[-1]


def test_the_running_guest_gets_the_new_value(deployment: Deployment, sops: SopsNix) -> None:
    """A rotation, and then a push by hand: the guest has the new value, and the VM was not restarted."""
    host = deployment.host
    sops.publish({"api-key": b"first"})
    start_vm(deployment)
    invocation = deployment.unit("web")["InvocationID"]
    sops.publish({"api-key": b"second"})
    deployment.credferry("agent", "--once")
    assert push(host) == (0, "VM web holds generation 2 now: app.service restarted")
    pushed = json.loads(host.path(f"{WORK}/{NOTES}").read_text())
    assert {
        name: [kind, base64.b64decode(text)] for name, (kind, text) in pushed["credentials"].items()
    } == {"API_KEY": ["plain", b"second"]}
    lines = base64.b64decode(pushed["manifest"]).decode().splitlines()
    assert lines[:4] == ["credferry-push 1", "vm web", "generation 2", "key none"]
    assert lines[5:] == [f"credential API_KEY plain {hashlib.sha256(b'second').hexdigest()}"]
    assert deployment.unit("web")["InvocationID"] == invocation
    assert deployment.starts("web") == 1
    assert "credferry.manifest" in deployment.delivered("web")


def test_a_forged_receipt_fails_the_unit(deployment: Deployment, sops: SopsNix) -> None:
    """What answers without the receipt of this generation is not believed."""
    sops.publish({"api-key": b"first"})
    start_vm(deployment, "forger")
    status, line = push(deployment.host)
    assert (status, "nothing is proved" in line) == (78, True), line


def test_a_guest_that_refuses_fails_the_unit(deployment: Deployment, sops: SopsNix) -> None:
    """The unit's line says what happened in the guest, and to which unit there."""
    sops.publish({"api-key": b"first"})
    start_vm(deployment, "failed unit app.service")
    status, line = push(deployment.host)
    assert (status, "the old ones are back (app.service)" in line) == (77, True), line


def test_a_neighbour_of_the_same_user_gets_nothing(deployment: Deployment, sops: SopsNix) -> None:
    """Another unit of the VMs' user listens at the VM's path: nothing is sent to it."""
    host = deployment.host
    sops.publish({"api-key": b"first"})
    start_vm(deployment, guest=False)
    notes = "/var/lib/microvms/web/work/stolen.json"
    command = ["/usr/bin/python3", "-IS", GUEST, f"{WORK}/{SOCKET}", notes]
    neighbour = ["--property=User=microvm", "--unit=neighbour.service"]
    host.run("systemd-run", *neighbour, "--", *command)
    try:
        wait_listening(host)
        status, line = push(host)
        assert (status, f"does not belong to {UNIT}" in line) == (69, True), line
        assert not host.path(notes).exists()
    finally:
        host.run("systemctl", "stop", "neighbour.service", check=False)


def test_a_vm_that_does_not_run_gets_no_push(deployment: Deployment, sops: SopsNix) -> None:
    """The line says so, and another push may find it running."""
    sops.publish({"api-key": b"first"})
    start_vm(deployment)
    deployment.host.run("systemctl", "stop", UNIT)
    status, line = push(deployment.host)
    assert (status, "VM web does not run" in line) == (75, True), line


def test_a_push_is_confined(host: Host) -> None:
    """The unit's sandbox leaves it a file system to read and UNIX sockets, as its user without rights."""
    host.run("systemctl", "daemon-reload")
    exposure = host.run("systemd-analyze", "security", "--no-pager", PUSH, check=False).stdout
    level = float(exposure.rsplit(": ", 1)[1].split()[0])
    assert level <= 1.5, exposure
