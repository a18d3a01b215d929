# SPDX-License-Identifier: MIT
"""Live VMs: the agent pushes rotated values to the running guest, and a restart follows where it cannot."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING

import pytest

from credferry.agent.audit.events import Event
from tests.host.test_push import GUEST, NOTES, WORK, start_vm, wait_listening
from tests.support.deployment import Deployment
from tests.support.installation import CHECKOUT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.host import Host
    from tests.support.producer import SopsNix

pytestmark = pytest.mark.host

VM = """
[vms.web]
live = true
{more}
[vms.web.credentials]
API_KEY = {{ secret = "api-key" }}
BOOT = {{ secret = "boot", live = false, required = false }}
"""


@pytest.fixture
def deployment(host: Host) -> Iterator[Deployment]:
    """A live VM `web`. Its stand-in hypervisor has no vsock device of its own."""
    made = Deployment(host)
    host.write(GUEST, (CHECKOUT / "tests/support/push_guest.py").read_bytes())
    made.configure(VM.format(more=""))
    yield made
    made.close()


def started(deployment: Deployment, sops: SopsNix, mode: str = "good", *, guest: bool = True) -> str:
    """Start the VM on a first value, and the agent. Returns the VM's invocation."""
    sops.publish({"api-key": b"first"})
    start_vm(deployment, mode, guest=guest)
    deployment.start_agent()
    return deployment.unit("web")["InvocationID"]


def pushed(host: Host) -> dict[str, bytes]:
    """What the guest was pushed last; empty for nothing."""
    try:
        noted = json.loads(host.path(f"{WORK}/{NOTES}").read_text())
    except (OSError, ValueError):
        return {}
    return {name: base64.b64decode(text) for name, (_, text) in noted["credentials"].items()}


def wait_event(deployment: Deployment, event: Event) -> str:
    """Wait until the audit has a record of an event; its message."""
    entry = deployment.host.wait_journal(lambda _: True, 30, MESSAGE_ID=event.value)
    return entry["MESSAGE"]


def test_rotations_reach_the_running_guest(deployment: Deployment, sops: SopsNix) -> None:
    """Two in a row: the guest has each, and the VM's unit keeps its invocation."""
    host = deployment.host
    invocation = started(deployment, sops)
    for value in (b"second", b"third"):
        sops.publish({"api-key": value})
        host.wait(lambda value=value: pushed(host) == {"API_KEY": value}, 30, "a push")  # type: ignore[misc]  # a default binds the value
    deployment.wait_in_step("web")
    row = deployment.status()["web"]
    assert (row["running"]["generation"], row["sealed"]["generation"]) == (3, 3)
    assert deployment.unit("web")["InvocationID"] == invocation
    assert deployment.starts("web") == 1
    proof = host.path("/run/credferry-pushed/web").stat()
    assert (proof.st_uid, proof.st_mode & 0o777) == (0, 0o600)


def test_a_guest_without_a_receiver_is_restarted(deployment: Deployment, sops: SopsNix) -> None:
    """Nobody listens: the VM gets the new value by a restart, as without `live`."""
    invocation = started(deployment, sops, guest=False)
    sops.publish({"api-key": b"second"})
    deployment.wait_in_step("web", 60)
    assert deployment.unit("web")["InvocationID"] != invocation
    assert deployment.delivered("web")["API_KEY"] == b"second"
    assert "nobody in its guest takes a push" in wait_event(deployment, Event.PUSH_FAILED)


def test_a_vm_that_is_to_be_left_alone_is_not_restarted(deployment: Deployment, sops: SopsNix) -> None:
    """With `on_live_failure = "hold"`, it keeps running, and is shown as failed with the reason."""
    deployment.configure(VM.format(more='on_live_failure = "hold"'))
    invocation = started(deployment, sops, guest=False)
    sops.publish({"api-key": b"second"})
    deployment.host.wait(lambda: deployment.status()["web"]["state"] == "failed", 60, "the failure")
    assert "nobody in its guest takes a push" in deployment.status()["web"]["reasons"][0]
    assert deployment.unit("web")["InvocationID"] == invocation


def test_a_value_that_a_unit_in_the_guest_cannot_use(deployment: Deployment, sops: SopsNix) -> None:
    """The generation before is current again, the VM stays up, and the value is not tried again."""
    host = deployment.host
    invocation = started(deployment, sops, "failed unit app.service")
    sops.publish({"api-key": b"bad"})
    host.wait(lambda: deployment.status()["web"]["state"] == "failed", 30, "the failure")
    row = deployment.status()["web"]
    assert (row["sealed"]["generation"], row["running"]["generation"]) == (1, 1)
    assert deployment.unit("web")["InvocationID"] == invocation
    asked = len(host.journal(MESSAGE_ID=Event.PUSH_ASKED.value))
    deployment.credferry("sync", check=False)
    assert len(host.journal(MESSAGE_ID=Event.PUSH_ASKED.value)) == asked


def test_a_neighbour_with_a_made_up_receipt(deployment: Deployment, sops: SopsNix) -> None:
    """It listens in the guest's place and says `done`: the agent does not believe it. A restart follows."""
    host = deployment.host
    invocation = started(deployment, sops, guest=False)
    command = ["/usr/bin/python3", "-IS", GUEST, f"{WORK}/notify.vsock", f"{WORK}/stolen.json", "forger"]
    host.run("systemd-run", "--property=User=microvm", "--unit=neighbour.service", "--", *command)
    try:
        wait_listening(host)
        sops.publish({"api-key": b"second"})
        deployment.wait_in_step("web", 60)
        assert deployment.unit("web")["InvocationID"] != invocation
        assert not host.path(f"{WORK}/stolen.json").exists()
    finally:
        host.run("systemctl", "stop", "neighbour.service", check=False)


def test_a_guest_that_answers_without_the_receipt(deployment: Deployment, sops: SopsNix) -> None:
    """Nothing is proved, though systemd's job might be done: the VM is restarted."""
    invocation = started(deployment, sops, "forger")
    sops.publish({"api-key": b"second"})
    deployment.wait_in_step("web", 60)
    assert deployment.unit("web")["InvocationID"] != invocation
    assert deployment.status()["web"]["running"]["generation"] == 2
