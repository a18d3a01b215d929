# SPDX-License-Identifier: MIT
"""What a host may lack for a moment, at each call of a VM's start: systemd tries the start again.

Once the VM runs, nothing that the launcher lacks ends it. Full file systems are really full. Other calls of
the real launcher are refused by strace's fault injection.
"""

from __future__ import annotations

import json
import signal
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from credferry.agent.audit.events import Event
from credferry.launcher.errors import Exit
from credferry.launcher.handoff import LAUNCHED, Channel, Delivery, Kind
from tests.support.deployment import Deployment, VmFiles
from tests.support.installation import install
from tests.unit.launcher.conftest import CANARY, VM, Vm, credentials, light_vm, sealed, tmp_path
from tests.unit.launcher.test_process import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.host import Host
    from tests.support.producer import SopsNix

__all__ = ["light_vm", "tmp_path"]  # fixtures

pytestmark = pytest.mark.host

SECRET = (Kind.PLAIN, CANARY.encode())
SEALED = (Kind.SEALED, sealed())
TRIED_AGAIN = {int(Exit.LATER), -signal.SIGUSR1}
"""Ends of a start after which systemd starts the VM again."""
PREVENTED = "64 65 69 SIGUSR2"
"""What the drop-in says that systemd does not start again after."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A call that the kernel refuses; ``path`` limits it to calls with that file."""

    call: str
    error: str
    path: str = ""
    when: str = "1"


@contextmanager
def full(directory: Path, size: str = "64k") -> Iterator[None]:
    """A directory that is a file system of its own, without room."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", directory], check=True)
    try:
        with (directory / "fill").open("wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)):
                    pass
            except OSError:
                pass
        yield
    finally:
        subprocess.run(["umount", "--lazy", directory], check=True)


def traced(vm: Vm, fault: Fault, version: str = "53.0") -> None:
    """Have the VM's next start meet a fault."""
    command = vm.command
    path = ["-P", fault.path.format(vm=vm.directory, runtime=vm.runtime)] if fault.path else []
    calls = ",".join(f"?{call}" for call in fault.call.split(","))
    strace = ["strace", "-f", "-qq", "-o", str(vm.directory / "trace"), *path, "-e", "signal=none"]
    strace += ["-e", f"trace={calls}", "-e", f"inject={calls}:error={fault.error}:when={fault.when}"]

    def with_fault(*argv: str) -> list[str]:
        words = command(*argv)
        if version:
            words[words.index("--real") : words.index("--real")] = ["--hypervisor-version", version]
        return [*strace, *words]

    vm.command = with_fault  # type: ignore[method-assign]  # the same command, below strace


def was_injected(vm: Vm) -> bool:
    """Whether the start has met its fault."""
    return "(INJECTED)" in (vm.directory / "trace").read_text()


BEFORE: dict[str, tuple[Channel, Fault]] = {
    "the manifest, opened": (Channel.API, Fault("openat", "EMFILE", "{vm}/creds/credferry_manifest")),
    "the manifest, read": (Channel.API, Fault("read", "EIO", "{vm}/creds/credferry_manifest")),
    "a value, opened": (Channel.API, Fault("openat", "ENFILE", "{vm}/creds/credferry_value.TOKEN")),
    "a value, read": (Channel.API, Fault("read", "ENOMEM", "{vm}/creds/credferry_value.TOKEN")),
    "an old socket, removed": (Channel.API, Fault("unlink", "EBUSY", "{runtime}/api.sock")),
    "the event monitor, opened": (Channel.API, Fault("openat", "ENOSPC", "events")),
    "the pipe for events": (Channel.API, Fault("pipe2", "EMFILE")),
    "the process's descriptor": (Channel.API, Fault("pidfd_open", "ENFILE")),
    "the child": (Channel.API, Fault("clone,clone3,fork,vfork", "EAGAIN")),
    "the child, command": (Channel.COMMAND, Fault("clone,clone3,fork,vfork", "ENOMEM")),
    "the hypervisor, replaced meanwhile": (Channel.COMMAND, Fault("execve", "ETXTBSY", "{vm}/idle-vmm")),
    "the hypervisor, no memory": (Channel.API, Fault("execve", "ENOMEM", "{vm}/idle-vmm")),
    "the child's own descriptors": (Channel.API, Fault("openat", "EMFILE", "/proc/self/fd")),
}


@pytest.mark.parametrize("what", BEFORE)
def test_what_the_host_lacks_at_a_start_is_tried_again(light_vm: Vm, what: str) -> None:
    """No start ends in a status that the drop-in names, nor in an internal error; a line says what to do."""
    channel, fault = BEFORE[what]
    light_vm.credentials(channel, TOKEN=SEALED)
    traced(light_vm, fault)
    light_vm.start(*light_vm.argv("--event-monitor", "path=events"))
    assert light_vm.wait() in TRIED_AGAIN, light_vm.said()
    assert was_injected(light_vm)
    assert light_vm.said().count("\n") >= 1
    assert "please report it" not in light_vm.said()
    assert CANARY not in light_vm.said()


@pytest.mark.parametrize(
    "fault",
    [
        Fault("pipe2", "EMFILE"),
        Fault("clone,clone3,fork,vfork", "EAGAIN"),
        Fault("execve", "ENOMEM", "{vm}/idle-vmm"),
    ],
    ids=lambda fault: fault.call,
)
def test_a_version_that_cannot_be_asked_for_now_is_asked_for_again(light_vm: Vm, fault: Fault) -> None:
    """The same where the hypervisor is to say its version first."""
    light_vm.credentials(TOKEN=SEALED)
    traced(light_vm, fault, version="")
    light_vm.start(*light_vm.argv())
    assert light_vm.wait() == Exit.LATER, light_vm.said()
    assert was_injected(light_vm)


@pytest.mark.parametrize("channel", LAUNCHED)
def test_no_room_for_the_initrd_is_tried_again(light_vm: Vm, channel: Channel) -> None:
    """/run is full when the initramfs is copied; once there is room, the same start succeeds."""
    initramfs = light_vm.directory / "initrd"
    initramfs.write_bytes(bytes(1 << 20))
    delivery = Delivery(channel=channel, initrd=True)
    credentials(light_vm.directory / "creds", {"TOKEN": SEALED}, delivery)
    words = light_vm.argv("--initramfs", str(initramfs), "--event-monitor", "path=events")
    with full(light_vm.runtime):
        light_vm.start(*words)
        assert light_vm.wait() == Exit.LATER, light_vm.said()
    assert "cannot copy the initramfs" in light_vm.said()
    assert "No space left on device" in light_vm.said()
    light_vm.start(*words)
    light_vm.wait_stamp()
    assert light_vm.process is not None
    assert light_vm.process.poll() is None


@pytest.mark.parametrize("channel", LAUNCHED)
def test_a_vm_runs_on_where_its_start_cannot_be_reported(light_vm: Vm, channel: Channel) -> None:
    """/run is full when the stamp is written: the VM boots, runs, and ends when it is told to."""
    light_vm.credentials(channel, TOKEN=SEALED)
    socket = ("--api-socket", "own.sock")
    with full(light_vm.runtime):
        light_vm.start(*light_vm.argv("--event-monitor", "path=events", *socket))
        wait_for(light_vm.directory / "events", light_vm, '"booted"')
        # A guest's reboot is noticed all the same: the child got past the report, and watches.
        assert light_vm.call("PUT", "vm.reboot", light_vm.directory / "own.sock")[0] == 204
        assert light_vm.wait() == 0, light_vm.said()
        assert not (light_vm.runtime / "stamp.json").exists()


@pytest.mark.parametrize("call", ["rename", "connect"])
def test_a_vm_runs_on_whatever_the_launcher_cannot_do(light_vm: Vm, call: str) -> None:
    """A report that cannot be put in place, and a connection that is refused a few times: the VM runs."""
    light_vm.credentials(TOKEN=SEALED)
    error = {"rename": "EIO", "connect": "EAGAIN"}[call]
    traced(light_vm, Fault(call, error, when="1..3"))
    light_vm.start(*light_vm.argv("--event-monitor", "path=events"))
    wait_for(light_vm.directory / "events", light_vm, '"booted"')
    assert light_vm.call("PUT", "vm.reboot")[0] == 204
    assert light_vm.wait() == 0, light_vm.said()
    assert was_injected(light_vm)


@pytest.mark.parametrize("call", ["openat", "read"])
def test_a_call_that_a_signal_interrupts_is_made_again(light_vm: Vm, call: str) -> None:
    """EINTR at the manifest is nothing: the VM starts at once."""
    light_vm.credentials(TOKEN=SEALED)
    traced(light_vm, Fault(call, "EINTR", "{vm}/creds/credferry_manifest"))
    light_vm.start(*light_vm.argv())
    light_vm.wait_stamp()
    assert was_injected(light_vm)


def test_a_full_run_keeps_no_vm_down(host: Host, sops: SopsNix) -> None:
    """With real systemd and journal: the VM is up, and the journal says what the agent was not told."""
    install(host)
    deployment = Deployment(host)
    try:
        deployment.add_vm(VM)
        sops.publish({"api-key": b"value"})
        deployment.configure(f'[vms.{VM}.credentials]\nAPI_KEY = {{ secret = "api-key" }}\n')
        deployment.credferry("agent", "--once")
        prevented = host.path(f"/etc/systemd/system/microvm@{VM}.service.d/50-credferry.conf").read_text()
        assert f"\nRestartPreventExitStatus={PREVENTED}\n" in prevented
        host.run("mkdir", "-p", "/run/credferry-vms")
        host.run("mount", "-t", "tmpfs", "-o", "size=4k", "none", "/run/credferry-vms")
        host.run("dd", "if=/dev/zero", "of=/run/credferry-vms/fill", "bs=4096", check=False)
        host.run("systemctl", "start", f"microvm@{VM}.service")
        warning = Event.LAUNCH_WARNING.value
        record = host.wait_journal(lambda entry: entry["MESSAGE_ID"] == warning, MESSAGE_ID=warning)
        assert "No space left on device. The VM runs." in record["MESSAGE"]
        assert record["CREDFERRY_VM"] == VM
        assert deployment.unit(VM)["ActiveState"] == "active"
        assert deployment.unit(VM)["NRestarts"] == "0"
        assert deployment.delivered(VM) == {"API_KEY": b"value"}
    finally:
        deployment.close()
        host.run("umount", "--lazy", "/run/credferry-vms", check=False)


def test_landlock_in_the_api_channel_is_told_at_each_start_and_by_doctor(host: Host, sops: SopsNix) -> None:
    """One record in the journal for a start, and a hint of doctor's; nothing about a VM without it."""
    install(host)
    deployment = Deployment(host)
    try:
        files = VmFiles()
        deployment.add_vm("bound", VmFiles(arguments=(*files.arguments, "--landlock")))
        deployment.add_vm("free")
        sops.publish({"api-key": b"value"})
        both = "".join(f'[vms.{vm}.credentials]\nK = {{ secret = "api-key" }}\n' for vm in ("bound", "free"))
        deployment.configure(both)
        deployment.credferry("agent", "--once")
        deployment.start_vm("bound", "free")
        warning = Event.LAUNCH_WARNING.value
        host.wait_journal(lambda entry: entry["CREDFERRY_VM"] == "bound", MESSAGE_ID=warning)
        told = host.journal(MESSAGE_ID=warning, _SYSTEMD_UNIT="microvm@bound.service")
        assert len(told) == 1
        assert "--landlock confines less in the api channel" in told[0]["MESSAGE"]
        assert not host.journal(MESSAGE_ID=warning, _SYSTEMD_UNIT="microvm@free.service")
        findings = json.loads(deployment.credferry("doctor", "--json", check=False))["findings"]
        about = [each for each in findings if each["check"] == "vm.landlock"]
        assert [(each["vm"], each["severity"]) for each in about] == [("bound", "hint")]
    finally:
        deployment.close()
