# SPDX-License-Identifier: MIT
"""The launcher as the unit's main process: what runs, who holds what, and how it ends."""

from __future__ import annotations

import os
import select
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from credferry.launcher.handoff import Channel, Kind

from .conftest import CANARY, CANARY_BASE64, INVOCATION, ROOT, VM, sealed, within

if TYPE_CHECKING:
    from .conftest import Vm

SECRET = (Kind.PLAIN, CANARY.encode())
TEXT = (Kind.TEXT, b"test")
SEALED = (Kind.SEALED, sealed())
NOTIFY = "io.systemd.credential:vmm.notify_socket=vsock-stream:2:8888"
PLATFORM = ("--platform", f"oem_strings=[{NOTIFY}],uuid=1ac73a63-c9b0-4f2f-a9e1-5c1f8b6f2c11")


def test_the_vm_is_created_over_the_api_and_nothing_secret_is_in_an_argument_vector(vm: Vm) -> None:
    """The guest's strings are the old ones and then ours; argv and environ of all processes are clean."""
    vm.credentials(API_KEY=SECRET, ENVIRONMENT=TEXT)
    vm.start(*vm.argv(*PLATFORM))
    stamp = vm.wait_stamp()
    status, info = vm.call("GET", "vm.info")
    assert status == 200
    assert info["config"]["platform"]["oem_strings"] == [
        NOTIFY,
        f"io.systemd.credential.binary:API_KEY={CANARY_BASE64}",
        "io.systemd.credential.binary:ENVIRONMENT=dGVzdA==",
    ]
    assert (stamp.vm, stamp.generation, stamp.invocation_id) == (VM, 7, INVOCATION)
    assert (stamp.channel, stamp.other_oem_bytes) == (Channel.API, len(NOTIFY) + 1)
    for pid in (vm.pid, vm.child()):
        for file in ("cmdline", "environ"):
            data = Path(f"/proc/{pid}/{file}").read_bytes()
            assert CANARY.encode() not in data
            assert CANARY_BASE64.encode() not in data


def test_the_hypervisor_is_the_main_process_under_microvm_nix_name(vm: Vm) -> None:
    """The launcher's pid runs cloud-hypervisor, as ``microvm@NAME``, with the API socket and events last."""
    vm.credentials(API_KEY=SECRET)
    vm.start(*vm.argv())
    vm.wait_stamp()
    words = Path(f"/proc/{vm.pid}/cmdline").read_bytes().decode().split("\0")[:-1]
    assert words[-4:] == ["--api-socket", f"path={vm.socket}", "--event-monitor", "fd=100"]
    if os.access(vm.hypervisor, os.X_OK) and vm.hypervisor.read_bytes()[:4] == b"\x7fELF":
        assert words[0] == f"microvm@{VM}"
        assert Path(f"/proc/{vm.pid}/exe").resolve() == vm.hypervisor.resolve()
    assert Path(f"/proc/{vm.pid}/limits").read_text().split("Max core file size")[1].split()[0] == "0"
    vm.call("PUT", "vmm.shutdown")
    assert vm.wait() == 0


def test_inherited_descriptors_stay_with_the_hypervisor_and_not_with_the_child(vm: Vm) -> None:
    """A descriptor that microvm-run opened is open in the VMM; the child has it not, nor standard input."""
    vm.credentials(API_KEY=SECRET)
    reading, writing = os.pipe()
    try:
        vm.start(*vm.argv(), pass_fds=[writing])
        vm.wait_stamp()
        held = Path(f"/proc/{vm.pid}/fd/{writing}").readlink()
        assert str(held).startswith("pipe:")
        child = {link.readlink() for link in Path(f"/proc/{vm.child()}/fd").iterdir()}
        assert held not in child
        assert Path(f"/proc/{vm.child()}/fd/0").readlink() == Path(os.devnull)
        assert Path(f"/proc/{vm.pid}/fd/0").readlink() != Path(os.devnull)
    finally:
        os.close(reading)
        os.close(writing)


def test_a_guest_reboot_ends_the_hypervisor(vm: Vm) -> None:
    """cloud-hypervisor would boot the guest again with the old strings: it is ended, with status 0."""
    vm.credentials(API_KEY=SECRET)
    vm.start(*vm.argv())
    vm.wait_stamp()
    assert vm.call("PUT", "vm.reboot")[0] == 204
    assert vm.wait() == 0


def test_a_guest_reboot_ends_the_hypervisor_in_the_command_channel(vm: Vm) -> None:
    """The same where the VM was started by its command line, over the API socket of that."""
    vm.credentials(Channel.COMMAND, TOKEN=SEALED)
    vm.start(*vm.argv("--api-socket", "own.sock", "--event-monitor", "path=events"))
    vm.wait_stamp()
    own = vm.directory / "own.sock"
    wait_for(own, vm)
    wait_for(vm.directory / "events", vm, '"booted"')
    assert vm.call("PUT", "vm.reboot", own)[0] == 204
    assert vm.wait() == 0


def test_a_guest_reboot_without_an_api_socket_ends_the_hypervisor(light_vm: Vm) -> None:
    """In the command channel without ``--api-socket``, SIGTERM does it."""
    light_vm.credentials(Channel.COMMAND, TOKEN=SEALED)
    light_vm.start(*light_vm.argv("--event-monitor", "path=events"))
    light_vm.wait_stamp()
    wait_for(light_vm.directory / "events", light_vm, "booted")
    os.kill(light_vm.pid, signal.SIGHUP)
    assert light_vm.wait() == 0


def test_a_vm_that_cannot_boot_ends_by_a_signal_after_which_systemd_tries_again(vm: Vm) -> None:
    """SIGUSR1, one line with cloud-hypervisor's own words, although the VM has a secret, and no stamp."""
    vm.credentials(API_KEY=SECRET)
    vm.start(*vm.argv(kernel="/does/not/exist"))
    assert vm.wait() == -signal.SIGUSR1
    assert (
        "credferry-launch: cloud-hypervisor refused vm.boot with status 500: Error from API: The VM could "
        "not boot: Cannot open kernel file: No such file or directory (os error 2): if this does not go away"
        in vm.said()
    )
    assert not (vm.runtime / "stamp.json").exists()


def test_an_answer_that_holds_a_secret_is_not_shown(light_vm: Vm) -> None:
    """The line says so, and how to see the answer."""
    light_vm.credentials(API_KEY=SECRET)
    light_vm.start(*light_vm.argv(kernel="/quoted"))
    assert light_vm.wait() == -signal.SIGUSR1
    assert (
        "refused vm.boot with status 500. Its answer is not shown, as it may hold part of a"
        in light_vm.said()
    )
    assert CANARY not in light_vm.said()
    assert CANARY_BASE64 not in light_vm.said()


@pytest.mark.parametrize(("kernel", "status"), [("/invalid", 400), ("/conflict", 409)])
def test_a_configuration_that_is_refused_at_boot_is_not_tried_again(
    light_vm: Vm, kernel: str, status: int
) -> None:
    """SIGUSR2: releases after 53 answer so where the configuration cannot work."""
    light_vm.credentials(API_KEY=SECRET)
    light_vm.start(*light_vm.argv(kernel=kernel))
    assert light_vm.wait() == -signal.SIGUSR2
    assert f"refused vm.boot with status {status}: Error from API: The VM could not boot" in light_vm.said()
    assert "correct the VM's configuration" in light_vm.said()


def test_a_vm_that_is_refused_ends_by_the_signal_that_prevents_a_restart(light_vm: Vm) -> None:
    """SIGUSR2, which the unit's drop-in names: a configuration that is not taken is not taken next time."""
    light_vm.credentials(API_KEY=SECRET)
    light_vm.start(*light_vm.argv(kernel="/refuse"))
    assert light_vm.wait() == -signal.SIGUSR2
    assert "cloud-hypervisor refused vm.create with status 500: Failed to create: correct" in light_vm.said()
    prevented = (ROOT / "contrib/systemd/credferry-vm.conf").read_text()
    assert "\nRestartPreventExitStatus=64 65 69 SIGUSR2\n" in prevented


def test_a_vm_that_is_confined_to_a_file_that_is_not_there_yet_is_tried_again(light_vm: Vm) -> None:
    """SIGUSR1 for a vm.create that opens files: with --landlock, it fails where vm.boot would have."""
    light_vm.credentials(API_KEY=SECRET)
    light_vm.start(*light_vm.argv("--landlock", kernel="/refuse"))
    assert light_vm.wait() == -signal.SIGUSR1
    assert "cloud-hypervisor refused vm.create with status 500" in light_vm.said()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
def test_the_child_ends_with_the_hypervisor(vm: Vm, number: signal.Signals) -> None:
    """However the VMM ends, the child sees its pipe close and follows."""
    vm.credentials(API_KEY=SECRET)
    vm.start(*vm.argv())
    vm.wait_stamp()
    child = os.pidfd_open(vm.child())
    try:
        os.kill(vm.pid, number)
        vm.wait()
        assert select.select([child], [], [], within())[0]
    finally:
        os.close(child)


def test_the_child_leaves_the_end_to_the_hypervisor(vm: Vm) -> None:
    """Though systemd signals the whole unit: the child ignores SIGTERM and ends with the VMM."""
    vm.credentials(API_KEY=SECRET)
    vm.start(*vm.argv())
    vm.wait_stamp()
    child = vm.child()
    os.kill(child, signal.SIGTERM)
    assert vm.call("PUT", "vm.reboot")[0] == 204
    assert vm.wait() == 0


def test_the_command_channel_merges_and_changes_nothing_else(vm: Vm) -> None:
    """The same words, with our strings behind the notify socket's; then the event pipe."""
    vm.credentials(Channel.COMMAND, TOKEN=SEALED, ENVIRONMENT=TEXT)
    vm.start(*vm.argv(*PLATFORM, "--cpus=boot=1"))
    stamp = vm.wait_stamp()
    assert stamp.channel is Channel.COMMAND
    _wait_exec(vm)
    words = Path(f"/proc/{vm.pid}/cmdline").read_bytes().decode().split("\0")[:-1]
    first = words.index("--kernel")
    token = f"io.systemd.credential:TOKEN={SEALED[1].decode()}"
    environment = "io.systemd.credential.binary:ENVIRONMENT=dGVzdA=="
    assert words[first:] == [
        *vm.argv(),
        "--platform",
        f"oem_strings=[{NOTIFY},{token},{environment}],uuid=1ac73a63-c9b0-4f2f-a9e1-5c1f8b6f2c11",
        "--cpus=boot=1",
        "--event-monitor",
        "fd=100",
    ]


@pytest.mark.parametrize("form", ["path", "fd"])
def test_the_command_lines_own_event_monitor_gets_the_stream(vm: Vm, form: str) -> None:
    """The VMM writes to our pipe, and its own reader still gets every event and then the end."""
    vm.credentials(API_KEY=SECRET)
    if form == "path":
        vm.start(*vm.argv("--event-monitor", "path=events"))
        vm.wait_stamp()
        vm.call("PUT", "vm.reboot")
        assert vm.wait() == 0
        stream = (vm.directory / "events").read_text()
    else:
        reading, writing = os.pipe()
        vm.start(*vm.argv("--event-monitor", f"fd={writing}"), pass_fds=[writing])
        os.close(writing)
        vm.wait_stamp()
        vm.call("PUT", "vm.reboot")
        assert vm.wait() == 0
        with os.fdopen(reading) as pipe:
            stream = pipe.read()
    assert '"event": "booted"' in stream
    assert '"event": "rebooting"' in stream


def test_macvtap_descriptors_are_added_in_order_after_the_vm_was_created(light_vm: Vm) -> None:
    """vm.create drops descriptors: they go through vm.add-net, and the networks behind them, too."""
    light_vm.credentials(API_KEY=SECRET)
    pipes = [os.pipe() for _ in range(2)]
    fds = [pipe[1] for pipe in pipes]
    try:
        light_vm.start(
            *light_vm.argv(
                "--net", "tap=a", f"fd=[{fds[0]},{fds[1]}],mac=02:00:00:00:01:01,num_queues=4", "tap=b"
            ),
            pass_fds=fds,
        )
        light_vm.wait_stamp()
        config = light_vm.call("GET", "vm.info")[1]["config"]
        assert config["net"] == [{"tap": "a"}]
        assert config["nets"] == [
            {"mac": "02:00:00:00:01:01", "num_queues": 4, "seen": [os.fstat(fd).st_ino for fd in fds]},
            {"tap": "b", "seen": []},
        ]
        held = {link.readlink() for link in Path(f"/proc/{light_vm.child()}/fd").iterdir()}
        assert not held & {Path(f"pipe:[{os.fstat(fd).st_ino}]") for fd in fds}
    finally:
        for pipe in pipes:
            for fd in pipe:
                os.close(fd)


def test_secrets_go_to_this_hypervisor_only(vm: Vm) -> None:
    """A process that listens at the socket's path from before gets no request that holds a secret."""
    vm.credentials(API_KEY=SECRET)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        path = vm.directory / "own.sock"
        other.bind(str(path))
        other.listen(100)
        vm.start(*vm.argv("--api-socket", str(path)))
        if vm.hypervisor.name == "idle-vmm":
            assert vm.wait() != 0
        else:  # v53 takes the path over and starts
            vm.wait_stamp()
        other.setblocking(False)
        heard = b""
        while select.select([other], [], [], 0)[0]:
            connection, _ = other.accept()
            with connection:
                connection.settimeout(within())
                heard += connection.recv(65536)
        assert heard == b""


def test_an_api_socket_given_as_a_descriptor_is_used(vm: Vm) -> None:
    """``--api-socket fd=N``: a socket that listens already, as from socket activation."""
    vm.credentials(API_KEY=SECRET)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        path = vm.directory / "fd.sock"
        listening.bind(str(path))
        listening.listen(10)
        vm.start(*vm.argv("--api-socket", f"fd={listening.fileno()}"), pass_fds=[listening.fileno()])
        vm.wait_stamp()
        assert vm.call("GET", "vm.info", path)[0] == 200


def test_the_process_that_runs_leaves_signals_as_they_were(light_vm: Vm) -> None:
    """Python ignores SIGPIPE; what is executed does not inherit that."""
    light_vm.credentials(Channel.COMMAND, TOKEN=SEALED)
    # grep reads its own status: what it prints is what any program would have inherited.
    probe = light_vm.directory / "probe"
    probe.write_text("#!/bin/sh\nexec grep SigIgn /proc/self/status >&2\n")
    probe.chmod(0o755)
    light_vm.hypervisor = probe
    light_vm.process = None
    command = light_vm.command(*light_vm.argv())
    command[command.index("--real") : command.index("--real")] = ["--hypervisor-version", "53.0"]
    light_vm.command = lambda *_: command  # type: ignore[method-assign]  # the version is not asked
    light_vm.start()
    assert light_vm.wait() == 0
    ignored = int(light_vm.said().split("SigIgn:")[1].split()[0], 16)
    assert not ignored & 1 << (signal.SIGPIPE - 1)
    assert not ignored & 1 << (signal.SIGXFSZ - 1)


def test_an_earlier_stamp_does_not_outlive_a_failed_start(light_vm: Vm) -> None:
    """A runtime directory that systemd was told to preserve holds the last invocation's."""
    light_vm.credentials(API_KEY=SECRET)
    (light_vm.runtime / "stamp.json").write_text("{}")
    light_vm.start(*light_vm.argv(kernel="/does/not/exist"))
    assert light_vm.wait() == -signal.SIGUSR1
    assert not (light_vm.runtime / "stamp.json").exists()


def wait_for(path: Path, vm: Vm, text: str | None = None) -> None:
    """Until a file is there (and holds a text), or the VMM ends."""
    pidfd = os.pidfd_open(vm.pid)
    try:
        for _ in range(int(within() * 100)):
            if path.exists() and (text is None or text in path.read_text()):
                return
            if select.select([pidfd], [], [], 0.01)[0]:
                break
    finally:
        os.close(pidfd)
    pytest.fail(f"{path} did not come: {vm.said()}")


def _wait_exec(vm: Vm) -> None:
    """Until the launcher has become the hypervisor."""
    pidfd = os.pidfd_open(vm.pid)
    try:
        for _ in range(int(within() * 100)):
            words = Path(f"/proc/{vm.pid}/cmdline").read_bytes()
            if words and b"--real" not in words:
                return
            if select.select([pidfd], [], [], 0.01)[0]:
                break
    finally:
        os.close(pidfd)
    pytest.fail(f"the hypervisor was not executed: {vm.said()}")
