# SPDX-License-Identifier: MIT
"""Sealed credentials behind a copy of the initramfs."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from credferry.launcher import initrd
from credferry.launcher.credentials import Credential
from credferry.launcher.errors import Exit, LaunchError
from credferry.launcher.handoff import INITRD_TOTAL_MAX, LAUNCHED, Channel, Delivery, Kind, Secret
from tests.support.guest import newc

from .conftest import CANARY, INVOCATION, VM, credentials, sealed
from .test_main import explain
from .test_process import wait_for

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .conftest import Vm


def blob(size: int) -> bytes:
    """Something sealed, as far as the launcher can tell."""
    return sealed(size)


def oracle(files: Mapping[str, bytes]) -> bytes:
    """The archive that is wanted, by another hand."""
    return b"".join(
        newc.archive(
            [
                newc.directory(".extra"),
                newc.directory(".extra/credentials"),
                *(newc.file(f".extra/credentials/{name}.cred", data, 0o400) for name, data in files.items()),
            ]
        )
    )


@pytest.mark.parametrize("sizes", [[], [0], [1, 2, 3, 4, 5], [100_000]])
def test_an_archive_is_what_linux_unpacks(sizes: list[int]) -> None:
    """The same bytes as another implementation makes, for names and values of every alignment."""
    files = {"n" * (index + 1): os.urandom(size) for index, size in enumerate(sizes)}
    assert initrd.archive(files.items()) == oracle(files)


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5000, (1 << 20) + 1])
def test_the_archive_begins_where_linux_looks_for_it(size: int, tmp_path: Path) -> None:
    """Behind all of the initramfs, at a multiple of four; the file has no name, and the original stays."""
    content = os.urandom(size)
    (tmp_path / "initrd").write_bytes(content)
    runtime = tmp_path / "run"
    runtime.mkdir()
    value = blob(50)
    descriptor = initrd.attach(
        str(tmp_path / "initrd"), [Credential("A", Kind.SEALED, Secret(value))], runtime
    )
    with os.fdopen(descriptor, "rb") as copy:
        assert copy.read() == content + bytes(-size % 4) + oracle({"A": value})
        assert os.fstat(descriptor).st_nlink == 0
        assert not os.get_inheritable(descriptor)
    assert list(runtime.iterdir()) == []
    assert (tmp_path / "initrd").read_bytes() == content


def test_what_cannot_be_copied_is_refused(tmp_path: Path) -> None:
    """An initramfs that is not there, and a directory without room or right."""
    with pytest.raises(LaunchError, match="--initramfs cannot be read"):
        initrd.attach(str(tmp_path / "none"), [], tmp_path)
    (tmp_path / "initrd").write_bytes(b"x")
    with pytest.raises(LaunchError, match="cannot copy the initramfs"):
        initrd.attach(str(tmp_path / "initrd"), [], Path("/proc"))


def test_more_than_a_guest_takes_is_refused() -> None:
    """At systemd's limit, and one over it; the text names the credential and no value."""
    half = Credential("HALF", Kind.SEALED, Secret(b"x" * (INITRD_TOTAL_MAX // 2)))
    initrd.check([half, half])
    with pytest.raises(LaunchError, match=r"credential MORE does not fit.*1048576") as caught:
        initrd.check([half, half, Credential("MORE", Kind.SEALED, Secret(CANARY.encode()))])
    assert CANARY not in str(caught.value)
    assert caught.value.status is Exit.CREDENTIALS


@pytest.mark.parametrize("channel", LAUNCHED)
def test_explain_tells_what_travels_how(channel: Channel, tmp_path: Path) -> None:
    """Sealed values in the initrd, whatever their size; texts as OEM strings; no value shown."""
    values = {"BIG": (Kind.SEALED, blob(30_000)), "T": (Kind.TEXT, b"t")}
    credentials(tmp_path, values, Delivery(channel=channel, initrd=True))
    done = explain("--kernel", "/k", "--initramfs", "/i", CREDENTIALS_DIRECTORY=str(tmp_path))
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert shown["initrd"] == {"initramfs": "/i", "adds": ["BIG"]}
    text = "io.systemd.credential.binary:T=<redacted>"
    if channel is Channel.API:
        assert shown["vm_create"]["payload"]["initramfs"] == "/proc/self/fd/99"
        assert shown["vm_create"]["platform"]["oem_strings"] == [text]
    else:
        at = shown["vmm"].index("--initramfs")
        assert shown["vmm"][at + 1] == "/proc/self/fd/99"
        assert f"oem_strings=[{text}]" in shown["vmm"]
    assert values["BIG"][1].decode()[:40] not in done.stdout


@pytest.mark.parametrize(
    "argv", [("--kernel", "/k"), ("--firmware", "/f"), ("--firmware", "/f", "--initramfs", "/i")]
)
def test_a_guest_without_an_initrd_is_refused(argv: tuple[str, ...], tmp_path: Path) -> None:
    """There would be nobody to take the credentials."""
    credentials(tmp_path, {"A": (Kind.SEALED, blob(100))}, Delivery(initrd=True))
    done = explain(*argv, CREDENTIALS_DIRECTORY=str(tmp_path))
    assert done.returncode == Exit.USAGE
    assert "no --initramfs that could carry credential A" in done.stderr


def test_a_name_that_stands_in_both_places_is_refused(tmp_path: Path) -> None:
    """The guest would prefer one of them."""
    credentials(tmp_path, {"A": (Kind.SEALED, blob(100))}, Delivery(initrd=True))
    platform = ("--platform", "oem_strings=[io.systemd.credential:A=b]")
    done = explain("--kernel", "/k", "--initramfs", "/i", *platform, CREDENTIALS_DIRECTORY=str(tmp_path))
    assert done.returncode == Exit.CREDENTIALS
    assert "credential A is given twice" in done.stderr


@pytest.mark.parametrize("channel", LAUNCHED)
# Without seccomp: a debug build's check of each descriptor that it closes is not in its filter.
@pytest.mark.parametrize("more", [(), ("--landlock", "--seccomp", "false")], ids=["plain", "landlock"])
def test_the_hypervisor_holds_the_initramfs_with_the_credentials(
    channel: Channel, more: tuple[str, ...], vm: Vm
) -> None:
    """40 kB of them: open in the VMM and in no other process, under no name, and the VM boots from it."""
    values = {f"S{index}": (Kind.SEALED, blob(3_000)) for index in range(10)}
    credentials(vm.directory / "creds", values, Delivery(channel=channel, initrd=True))
    initramfs = vm.directory / "initrd"
    initramfs.write_bytes(os.urandom(1001))
    own = ("--api-socket", "own.sock", "--event-monitor", "path=events")
    vm.start(*vm.argv("--initramfs", str(initramfs), *own, *more))
    stamp = vm.wait_stamp()
    wait_for(vm.directory / "events", vm, '"booted"')
    assert (stamp.vm, stamp.invocation_id, stamp.other_oem_bytes) == (VM, INVOCATION, 0)
    held = Path(f"/proc/{vm.pid}/fd/99").read_bytes()
    assert held == initramfs.read_bytes() + bytes(3) + oracle({k: v for k, (_, v) in values.items()})
    assert not Path(f"/proc/{vm.child()}/fd/99").exists()
    assert [path.name for path in vm.runtime.iterdir()] == ["stamp.json"]
    if channel is Channel.API:
        config = vm.call("GET", "vm.info", vm.directory / "own.sock")[1]["config"]
        assert config["payload"]["initramfs"] == "/proc/self/fd/99"


def test_a_descriptor_in_its_place_is_refused(light_vm: Vm) -> None:
    """Rather than taking what somebody gave the hypervisor."""
    credentials(light_vm.directory / "creds", {"A": (Kind.SEALED, blob(100))}, Delivery(initrd=True))
    (light_vm.directory / "initrd").write_bytes(b"")
    command = light_vm.command(*light_vm.argv("--initramfs", "initrd"))
    done = subprocess.run(
        ["bash", "-c", 'exec 99</dev/null; exec "$@"', "-", *command],
        cwd=light_vm.directory,
        env=light_vm.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == Exit.USAGE
    assert "descriptor 99 is open" in done.stderr
