# SPDX-License-Identifier: MIT
"""Live VMs: the agent pushes rotated values to the running guest, and a restart follows where it cannot."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING

import pytest

from credferry.agent.audit.events import Event
from tests.host.test_push import GUEST, NOTES, PUSH, UNIT, WORK, start_vm, wait_listening
from tests.support.deployment import Deployment
from tests.support.installation import CHECKOUT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.host import Host
    from tests.support.producer import SopsNix

pytestmark = pytest.mark.host

FIFO = "/var/lib/credferry-test-fifo"
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
    host.run("rm", "-f", FIFO)


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


def waiting(deployment: Deployment, sops: SopsNix) -> str:
    """Have a push wait for the guest's answer. Returns the VM's invocation."""
    host = deployment.host
    host.run("mkfifo", "-m", "0666", FIFO)
    invocation = started(deployment, sops, f"waits {FIFO}")
    sops.publish({"api-key": b"second"})
    host.wait(lambda: pushed(host) == {"API_KEY": b"second"}, 30, "a push")
    return invocation


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
    assert "back on generation 1" in wait_event(deployment, Event.ROLLED_BACK)  # it has failed before that
    row = deployment.status()["web"]
    assert row["state"] == "failed"
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


def test_an_agent_that_dies_before_it_notes_a_push(deployment: Deployment, sops: SopsNix) -> None:
    """The guest took the push meanwhile. The next agent pushes once more, and restarts nothing."""
    host = deployment.host
    invocation = waiting(deployment, sops)
    deployment.kill_agent()
    host.run("sh", "-c", f"echo go >{FIFO}")
    host.wait(lambda: host.unit(PUSH)["ActiveState"] == "inactive", 30, "the end of the push")
    deployment.start_agent()
    deployment.wait_in_step("web")
    assert (deployment.unit("web")["InvocationID"], deployment.starts("web")) == (invocation, 1)
    noted = json.loads(host.path("/var/lib/credferry/vms/web/pushed.json").read_text())
    assert (noted["invocation_id"], noted["generation"], noted["asked"]) == (invocation, 2, 0)


def test_a_vm_that_is_restarted_during_its_push(deployment: Deployment, sops: SopsNix) -> None:
    """Its start got the new generation. The agent restarts nothing more."""
    host = deployment.host
    invocation = waiting(deployment, sops)
    host.run("systemctl", "restart", UNIT)
    deployment.wait_in_step("web", 60)
    deployment.wait_noted("web")
    assert deployment.unit("web")["InvocationID"] != invocation
    assert (deployment.starts("web"), deployment.delivered("web")["API_KEY"]) == (2, b"second")


def test_values_that_come_back_during_a_push(deployment: Deployment, sops: SopsNix) -> None:
    """The VM was started with them, but its guest holds others by then: they are pushed."""
    host = deployment.host
    invocation = waiting(deployment, sops)
    sops.publish({"api-key": b"first"})
    host.run("sh", "-c", f"echo go >{FIFO}")
    host.wait(lambda: pushed(host) == {"API_KEY": b"first"}, 30, "another push")
    deployment.wait_in_step("web")
    assert deployment.unit("web")["InvocationID"] == invocation


def test_a_required_secret_that_is_gone(deployment: Deployment, sops: SopsNix) -> None:
    """The guest keeps what it has, and gets the next value when there is one."""
    host = deployment.host
    invocation = started(deployment, sops)
    sops.publish({"other": b"value"})
    host.wait(lambda: deployment.status()["web"]["state"] == "refused", 30, "the refusal")
    assert pushed(host) == {}
    sops.publish({"api-key": b"second"})
    host.wait(lambda: pushed(host) == {"API_KEY": b"second"}, 30, "a push")
    deployment.wait_in_step("web")
    assert deployment.unit("web")["InvocationID"] == invocation


def test_the_configuration_adds_and_removes_credentials(deployment: Deployment, sops: SopsNix) -> None:
    """A reload pushes them, but a new one that is read only at boot restarts the VM."""
    host, text = deployment.host, VM.format(more="")
    invocation = started(deployment, sops)
    deployment.configure(text + 'MODE = { text = "on" }\n')
    host.run("systemctl", "reload", "credferry.service")
    host.wait(lambda: pushed(host) == {"API_KEY": b"first", "MODE": b"on"}, 30, "the addition")
    deployment.configure(text)
    host.run("systemctl", "reload", "credferry.service")
    host.wait(lambda: pushed(host) == {"API_KEY": b"first"}, 30, "the removal")
    deployment.wait_in_step("web")
    assert deployment.unit("web")["InvocationID"] == invocation
    sops.publish({"api-key": b"first", "boot": b"value"})
    host.wait(lambda: deployment.starts("web") == 2, 30, "a restart")
    deployment.wait_in_step("web")
    assert deployment.delivered("web")["BOOT"] == b"value"


def test_the_doctor_and_the_check_know_live_vms(deployment: Deployment, sops: SopsNix) -> None:
    """Whether the push unit can do its work, and how a change of each credential would arrive."""
    host, drop_in = deployment.host, f"/etc/systemd/system/{PUSH}.d/user.conf"

    def found() -> dict[str, str]:
        told = json.loads(deployment.credferry("doctor", "web", "--json", check=False))["findings"]
        return {each["check"]: each["severity"] for each in told if each["check"].startswith("vm.push")}

    started(deployment, sops)
    assert found() == {"vm.push": "ok"}
    rows = json.loads(deployment.credferry("check", "--json"))
    assert {row["credential"]: row["change"] for row in rows} == {"API_KEY": "push", "BOOT": "restart"}
    try:
        host.write(drop_in, "[Service]\nUser=nobody\n")
        host.run("systemctl", "daemon-reload")
        assert found() == {"vm.push.user": "problem"}
        host.write(drop_in, "[Service]\nExecStart=\nExecStart=/usr/bin/credferry-launch --push --vm web\n")
        host.run("systemctl", "daemon-reload")
        assert found() == {"vm.push.unit": "problem"}
    finally:
        host.run("rm", drop_in)
        host.run("systemctl", "daemon-reload")
    host.run("systemctl", "mask", PUSH)
    try:
        assert found() == {"vm.push": "problem"}
    finally:
        host.run("systemctl", "unmask", PUSH)
