# SPDX-License-Identifier: MIT
"""VMs from a spec: what it becomes, what is refused, and what the units do with it."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from credferry.agent.config.loading import load as load_config
from credferry.launcher.errors import Exit, LaunchError
from credferry.launcher.handoff import Delivery, Kind
from credferry.launcher.hypervisor.options import Grammar
from credferry.launcher.spec import command as speccommand
from credferry.launcher.spec import notify
from credferry.launcher.spec import reading as spec
from credferry.launcher.spec.model import Network, Share
from tests.support.modules import MODULES

from .conftest import CANARY, ROOT, VM, credentials, within
from .test_main import run

if TYPE_CHECKING:
    from .conftest import Vm

EXAMPLES = ROOT / "contrib" / "examples"
KEYED = '[guest_key]\nmachine_id = "5EA1ED00-c0ff-ee00-c0ff-ee0000000252"\n'
LEAST = 'name = "web"\nkernel = "vmlinux"\n'


def write(directory: Path, text: str) -> Path:
    """A spec's file."""
    path = directory / "vm.toml"
    path.write_text(text)
    return path


def words(directory: Path, text: str, grammar: Grammar = Grammar.FROM_48) -> list[str]:
    """The arguments that a spec becomes."""
    return speccommand.arguments(spec.load(write(directory, text)), grammar)


def test_the_example_is_the_deployment_that_the_project_began_with() -> None:
    """2 vCPUs and 1024 MB, and beside it the credentials; `--explain` needs nothing but the file."""
    done = run("--spec", str(EXAMPLES / "test-vm.toml"), "--explain", "--hypervisor-version", "53.0")
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert shown["argv0"] == "microvm@test-vm"
    assert shown["vm_create"]["cpus"] == {"boot_vcpus": 2, "max_vcpus": 2}
    assert shown["vm_create"]["memory"] == {"size": 1024 << 20}
    assert shown["vm_create"]["net"] == [{"tap": "vm-test", "mac": "02:00:00:00:00:01", "num_queues": 4}]
    vm = load_config(EXAMPLES / "config.toml").vm("test-vm")
    assert {name: (each.text, each.secret) for name, each in vm.credentials.items()} == {
        "ENVIRONMENT": ("test", None),
        "CLUSTER": ("britton-desktop", None),
        "API_KEY": (None, "api-key"),
    }


def test_a_spec_becomes_what_microvm_nix_would_give(tmp_path: Path) -> None:
    """Shares make memory shared, several CPUs make queues, notify comes after the strings that are there."""
    text = (
        LEAST
        + """
cpus = { boot = 2, max = 4 }
memory = "1G"
watchdog = true
initrd = "initrd"
cmdline = "-a, b"
options = ["--pvpanic"]
[platform]
oem_strings = ["a=b", "c"]
uuid = "1-2"
[vsock]
cid = 3
notify = true
[[disks]]
path = "a,b[.img"
readonly = true
queue_affinity = ["0@[0-1]"]
[[shares]]
tag = "data"
source = "/srv"
readonly = true
[[networks]]
tap = "t0"
mac = "02:00:00:00:00:01"
addresses = ["10.0.0.1/24", "fd00::1/64"]
[[devices]]
path = "/sys/x"
"""
    )
    assert words(tmp_path, text) == [
        *(
            "--cpus",
            "boot=2,max=4",
            "--watchdog",
            "--kernel=vmlinux",
            "--initramfs=initrd",
            "--cmdline=-a, b",
        ),
        *("--memory", "size=1G,shared=on"),
        *("--platform", f"uuid=1-2,oem_strings=[a=b,c,{speccommand.NOTIFY}]"),
        *("--console=null", "--serial=tty", "--vsock", "cid=3,socket=notify.vsock"),
        *("--disk", 'path="a,b[.img",readonly=on,queue_affinity=[0@[0-1]]'),
        *("--fs", "tag=data,socket=/run/credferry-shares/web/data.sock", "--api-socket", "web.sock"),
        *("--net", "tap=t0,mac=02:00:00:00:00:01,num_queues=4", "--device", "path=/sys/x", "--pvpanic"),
    ]
    loaded = spec.load(tmp_path / "vm.toml")
    assert loaded.shares == (Share("data", "/srv", "/run/credferry-shares/web/data.sock", readonly=True),)
    assert loaded.networks == (Network("t0", ("10.0.0.1/24", "fd00::1/64"), 2),)
    assert loaded.notify_socket == "notify.vsock_8888"
    assert loaded.sockets == ("web.sock", "notify.vsock")


def test_a_guest_that_gets_its_key_from_the_host(tmp_path: Path) -> None:
    """It gets a read-only share of a directory of its own, and the machine id that the key is for."""
    found = words(tmp_path, LEAST + 'cmdline = "quiet"\n' + KEYED)
    assert "--cmdline=quiet systemd.machine_id=5ea1ed00c0ffee00c0ffee0000000252" in found
    assert found[found.index("--memory") + 1] == "size=512M,shared=on"
    assert "tag=credferry-key,socket=/run/credferry-shares/web/credferry-key.sock" in found
    (share,) = spec.load(tmp_path / "vm.toml").shares
    assert (share.source, share.readonly) == ("/run/credferry-guest-keys/web", True)
    assert "systemd.machine_id" not in str(words(tmp_path, 'name = "web"\nfirmware = "f"\n' + KEYED))


def test_what_an_older_grammar_cannot_say_is_refused(tmp_path: Path) -> None:
    """Up to v47 a comma in a path has no form."""
    with pytest.raises(LaunchError, match="--disk cannot be passed on"):
        words(tmp_path, LEAST + '[[disks]]\npath = "canary,b"', Grammar.UP_TO_47)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("", "name"),
        ('name = "a/b"', "name"),
        ('name = "a"', "kernel"),
        (LEAST + 'firmware = "f"', "kernel"),
        (LEAST + "canary", "not TOML"),
        (LEAST + 'colour = "canary"', "colour"),
        (LEAST + "cmdline = 3", "cmdline"),
        (LEAST + 'cpus = "canary"', "cpus"),
        (LEAST + "cpus = { boot = true }", "cpus.boot"),
        (LEAST + "memory = true", "memory"),
        (LEAST + "watchdog = 1", "watchdog"),
        (LEAST + "options = [1]", "options"),
        (LEAST + 'disks = "canary"', "disks"),
        (LEAST + "[[disks]]", "disks, number 1: path"),
        (LEAST + '[[disks]]\npath = "a"\ncolour = "canary"', "disks.colour"),
        (LEAST + '[[disks]]\npath = { a = "canary" }', "disks.path"),
        (LEAST + '[[networks]]\ntap = "canary"', "networks, number 1: mac"),
        (LEAST + '[[networks]]\ntap = "a"\nmac = "b"\naddresses = "canary"', "networks: addresses"),
        (LEAST + '[[networks]]\ntap = "a"\nmac = "b"\nnum_queues = "canary"', "networks: num_queues"),
        (LEAST + '[[shares]]\ntag = "canary"', "shares, number 1: source"),
        (LEAST + "[vsock]", "vsock.cid"),
        (LEAST + '[vsock]\ncid = 3\nsocket = ["canary"]', "vsock.socket"),
        (LEAST + '[vsock]\ncid = 3\nnotify = "canary"', "vsock.notify"),
        (LEAST + "[platform]\noem_strings = true", "platform.oem_strings"),
        (LEAST + '[platform]\noem_strings = "canary"', "platform.oem_strings"),
        (LEAST + '[[shares]]\ntag = "a"\nsource = "b"\nsocket = 3', "shares.socket"),
        (LEAST + '[[shares]]\ntag = "a"\nsource = "b"\nreadonly = "canary"', "shares.readonly"),
        (LEAST + 'guest_key = "canary"', "guest_key"),
        (LEAST + "[guest_key]", "guest_key"),
        (LEAST + '[guest_key]\nmachine_id = "canary"', "guest_key.machine_id"),
        (LEAST + f'[guest_key]\nmachine_id = "{"0" * 32}"', "guest_key.machine_id"),
        (LEAST + KEYED + '[[shares]]\ntag = "credferry-key"\nsource = "canary"', "shares: tag"),
    ],
)
def test_refusals_name_file_and_key(text: str, key: str, tmp_path: Path) -> None:
    """One line, the usage status, and nothing of what was found there."""
    done = run("--spec", str(write(tmp_path, text)), "--explain", "--hypervisor-version", "53")
    assert done.returncode == Exit.USAGE
    assert f"{tmp_path / 'vm.toml'}" in done.stderr
    assert key in done.stderr
    assert done.stderr.count("\n") == 1
    assert "canary" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--spec", "{spec}", "--", "--kernel", "x"), "are both given"),
        (("--spec", "{spec}", "--tap-up", "--tap-down"), "can only be combined with --spec"),
        (("--spec", "{spec}", "--tap-up", "--explain"), "can only be combined with --spec"),
        (("--real", "/x", "--tap-up", "--"), "can only be combined with --spec"),
        (("--spec", "{spec}", "--vm", "other"), "for VM web, not for other"),
        (("--spec", "/does/not/exist"), "cannot be read"),
        (("--spec", "{spec}", "--shutdown"), "$MAINPID"),
    ],
)
def test_arguments_that_do_not_go_together(arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    """One line, and nothing done."""
    path = str(write(tmp_path, LEAST))
    done = run(*(each.format(spec=path) for each in arguments))
    assert (done.returncode, said in done.stderr, done.stderr.count("\n")) == (Exit.USAGE, True, 1)


def start(vm: Vm, text: str, **environment: str) -> None:
    """Start the unit's main process from a spec, as microvm@.service does."""
    base = f'name = "{VM}"\nkernel = "vmlinux"\nmemory = 64\nserial = "null"\n'
    write(vm.directory, base + text)
    command = [
        sys.executable,
        "-m",
        "credferry.launcher",
        "--spec",
        "vm.toml",
        "--vm",
        VM,
        "--real",
        str(vm.hypervisor),
    ]
    with vm.errors.open("wb") as errors:
        vm.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env=vm.environment | environment,
            cwd=vm.directory,
        )


def test_a_vm_starts_from_a_spec_and_ends_by_its_unit(vm: Vm) -> None:
    """With its credentials, over sockets that an earlier run left; the power button ends it."""
    vm.credentials(API_KEY=(Kind.PLAIN, CANARY.encode()))
    (vm.directory / f"{VM}.sock").write_bytes(b"")
    (vm.directory / "v.sock").write_bytes(b"")
    start(vm, '[vsock]\ncid = 3\nsocket = "v.sock"\n[platform]\noem_strings = ["a=b"]\n')
    stamp = vm.wait_stamp()
    assert (stamp.vm, stamp.other_oem_bytes) == (VM, 4)
    config = vm.call("GET", "vm.info", vm.directory / f"{VM}.sock")[1]["config"]
    assert len(config["platform"]["oem_strings"]) == 2
    assert config["vsock"]["cid"] == 3
    assert CANARY not in Path(f"/proc/{vm.pid}/cmdline").read_text()
    if vm.hypervisor.name == "idle-vmm":  # the tiny guest of a real one hears no button
        command = [sys.executable, "-m", "credferry.launcher", "--spec", "vm.toml", "--shutdown"]
        environment = vm.environment | {"MAINPID": str(vm.pid)}
        done = subprocess.run(command, cwd=vm.directory, env=environment, check=False, timeout=within())
        assert done.returncode == 0
        assert vm.wait() == 0


def test_what_the_guest_says_reaches_the_units_systemd(vm: Vm) -> None:
    """Its READY=1 and its status; nothing else of sd_notify(3), in whatever pieces it comes."""
    vm.credentials(API_KEY=(Kind.PLAIN, CANARY.encode()))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(vm.directory / "notify"))
        systemd.settimeout(within())
        (vm.directory / "notify.vsock_8888").write_bytes(b"")
        start(vm, "[vsock]\ncid = 3\nnotify = true\n", NOTIFY_SOCKET=str(vm.directory / "notify"))
        vm.wait_stamp()
        path = vm.directory / "notify.vsock_8888"
        assert path.stat().st_mode & 0o777 == 0o600
        with socket.socket(socket.AF_UNIX) as silent, socket.socket(socket.AF_UNIX) as guest:
            silent.connect(str(path))
            guest.connect(str(path))
            guest.sendall(b"MAINPID=1\nSTATUS=it is\x1b up\nFDSTORE=1\nREA")
            guest.sendall(b"DY=1\nWATCHDOG=trigger\n")
            guest.close()
            assert systemd.recv(4096) == b"STATUS=it is  up\nREADY=1"
        vm.call("PUT", "vm.reboot", vm.directory / f"{VM}.sock")
        assert vm.wait() == 0


def test_a_guest_cannot_hold_the_bridge(tmp_path: Path) -> None:
    """Too much is cut, too many wait, and an empty message is none."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(within())
        bridge = notify.Bridge(notify.listen(str(path)), str(tmp_path / "notify"))
        guests = [socket.socket(socket.AF_UNIX) for _ in range(8)]
        (listening,) = bridge.wanted
        for guest in guests:
            guest.connect(str(path))
            bridge.serve({listening})
        assert len(bridge.wanted) == 8
        assert listening not in bridge.wanted
        guests[0].sendall(b"READY=1\n" + b"x" * 5000)
        guests[1].close()
        for _ in range(3):
            bridge.serve(readable(bridge))
        assert systemd.recv(4096) == b"READY=1"
        assert listening in bridge.wanted
        for guest in guests:
            guest.close()


def readable(bridge: notify.Bridge) -> set[int]:
    """What it wants to hear about, and is readable now."""
    return set(select.select(bridge.wanted, [], [], 0)[0])


def test_a_guests_word_waits_for_room_in_systemds_socket(tmp_path: Path) -> None:
    """A READY=1 that was lost would have systemd end the VM: it is kept, and sent when there is room."""
    path = tmp_path / "s"
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as others,
    ):
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(within())
        others.setblocking(False)
        before = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                others.sendto(b"x", str(tmp_path / "notify"))
                before += 1
        bridge = notify.Bridge(notify.listen(str(path)), str(tmp_path / "notify"))
        assert bridge.again_ms is None
        for said in (b"STATUS=first", b"READY=1"):
            with socket.socket(socket.AF_UNIX) as guest:
                guest.connect(str(path))
                guest.sendall(said)
            for _ in range(3):
                bridge.serve(readable(bridge))
        assert bridge.again_ms is not None
        assert [systemd.recv(4096) for _ in range(before)] == [b"x"] * before
        bridge.serve(())
        assert [systemd.recv(4096), systemd.recv(4096)] == [b"STATUS=first", b"READY=1"]
        assert bridge.again_ms is None


def test_a_guest_that_cannot_be_answered_yet_is_answered_later(tmp_path: Path) -> None:
    """Without a descriptor for its connection, the bridge neither turns in circles nor forgets it."""
    path = tmp_path / "s"
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(within())
        bridge = notify.Bridge(notify.listen(str(path)), str(tmp_path / "notify"))
        (listening,) = bridge.wanted
        with socket.socket(socket.AF_UNIX) as guest:
            guest.connect(str(path))
            guest.sendall(b"READY=1")
            lowest = os.dup(0)
            os.close(lowest)
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
            try:
                bridge.serve({listening})
                assert listening not in bridge.wanted
                assert bridge.again_ms is not None
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            bridge.serve(())
            assert listening in bridge.wanted
            assert bridge.again_ms is None
            bridge.serve(readable(bridge))
        for _ in range(2):
            bridge.serve(readable(bridge))
        assert systemd.recv(4096) == b"READY=1"


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("ip"), reason="needs root and iproute2")
def test_taps_come_and_go_with_their_unit(tmp_path: Path) -> None:
    """Made anew over an earlier one, with queues, address and owner, and up; then gone."""
    text = LEAST + 'cpus = 2\nuser = "nobody"\n[[networks]]\ntap = "cft0"\nmac = "02:00:00:00:00:01"\n'
    path = write(tmp_path, text + 'addresses = ["10.9.8.1/24"]\n')
    launch = f"{sys.executable} -m credferry.launcher --spec {path}"
    script = f"""set -e
    {launch} --tap-up; {launch} --tap-up
    ip -json -details address show cft0
    {launch} --tap-down; {launch} --tap-down
    ! ip link show cft0 2>/dev/null"""
    done = subprocess.run(
        ["unshare", "--net", "--mount", "sh", "-c", f"mount -t sysfs none /sys; {script}"],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(MODULES), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (shown,) = json.loads(done.stdout)
    assert shown["linkinfo"]["info_data"]["multi_queue"]
    assert shown["linkinfo"]["info_data"]["user"] == "nobody"
    assert "UP" in shown["flags"]
    assert shown["addr_info"][0]["local"] == "10.9.8.1"


def test_a_vm_without_shares_needs_no_virtiofsd(tmp_path: Path) -> None:
    """Its unit is up at once, and stays so until it is told to end."""
    path = write(tmp_path, LEAST)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(within())
        process = subprocess.Popen(
            [sys.executable, "-m", "credferry.launcher", "--spec", str(path), "--virtiofsd"],
            env={"PYTHONPATH": str(MODULES), "NOTIFY_SOCKET": str(tmp_path / "notify"), "PATH": "/nowhere"},
        )
        assert systemd.recv(100) == b"READY=1"
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(within()) == 0


def test_sealed_values_of_a_spec_go_into_its_initrd(tmp_path: Path) -> None:
    """One way for both kinds of VM: whatever the launcher does, it does for a spec."""
    credentials(tmp_path / "c", {"T": (Kind.TEXT, b"t")}, Delivery(initrd=True))
    path = write(tmp_path, LEAST.replace("web", VM) + 'initrd = "i"\n')
    words = ("--spec", str(path), "--explain", "--hypervisor-version", "53")
    done = run(*words, CREDENTIALS_DIRECTORY=str(tmp_path / "c"))
    assert json.loads(done.stdout)["credentials"] == [{"name": "T", "kind": "text"}]
