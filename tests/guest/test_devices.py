# SPDX-License-Identifier: MIT
"""Guests use their devices, in the same boot that brings their credentials, and in the next one."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import TYPE_CHECKING

import pytest

from tests.support.cache import cache_directory
from tests.support.deployment import Deployment, guest_files
from tests.support.guest import DONE, Variant, credential_printer, device_user, guest
from tests.support.host import Host
from tests.support.installation import install
from tests.support.producer import SopsNix
from tests.support.wiring import NOTIFY, SERVER_PORT, Macvtap, Tap, Wiring, listen, other_network

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.support.deployment import VmFiles

_BOOT_SECONDS = 120.0
_FIRST, _SECOND = b"the first value", b"the second value"
_MACS = ("02:00:00:00:00:0a", "02:00:00:00:00:0b")


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    """A host of this module's own, with the stand-in hypervisor that boots guests in QEMU."""
    with Host(cache_directory()) as booted:
        install(booted)
        yield booted


@pytest.fixture
def deployment(host: Host) -> Iterator[Deployment]:
    """Each of the VMs is to get the credential K."""
    made = Deployment(host)
    made.configure(
        "".join(f'[vms.{vm}.credentials]\nK = {{ secret = "api-key" }}\n' for vm in ("web", "far"))
    )
    yield made
    made.close()


@pytest.fixture
def sops(host: Host) -> Iterator[SopsNix]:
    """sops-nix as the producer, with a first value published."""
    made = SopsNix(host)
    made.publish({"api-key": _FIRST})
    yield made
    made.remove()


def _with_devices(files: VmFiles, devices: Sequence[str], strings: str, before: str) -> VmFiles:
    """A VM with devices as well, its arguments in microvm.nix's order as far as it matters."""
    arguments = list(files.arguments)
    arguments[arguments.index("--memory") + 1] = "shared=on,size=512M"
    arguments[arguments.index("--platform") + 1] = strings
    return dataclasses.replace(files, arguments=[*arguments, *devices], before=before)


def _told(deployment: Deployment, vm: str) -> list[str]:
    """All lines of the harness that a VM's guests have printed, oldest first."""
    entries = deployment.host.journal(_SYSTEMD_UNIT=f"microvm@{vm}.service")
    lines = (line.strip() for entry in entries for line in entry.get("MESSAGE", "").splitlines())
    return [line.removeprefix("credferry-guest: ") for line in lines if line.startswith("credferry-guest: ")]


def _printed(name: str, value: bytes, variant: Variant) -> str:
    return f"{name} sha256={hashlib.sha256(value).hexdigest()[:16]} systemd={variant.systemd}"


def test_a_rotation_brings_the_guest_back_with_all_of_its_devices(
    deployment: Deployment, sops: SopsNix
) -> None:
    """A guest reads its volume, reads and writes its share, talks over its tap, and gets its credentials.

    The notify string that was on the command line reaches it intact: the start of its unit is over when the
    guest says READY=1 over vsock. After a rotation all of that is so again, tap and virtiofsd included,
    which were restarted with the VM.
    """
    host, wiring = deployment.host, Wiring(deployment.host, "web")
    wiring.taps(Tap("tap-web", "10.91.0.1/24"))
    listen(host, "the host")
    host.write("/srv/files/in", "first\n")
    devices = [
        *("--vsock", "cid=5,socket=notify.vsock"),
        *("--disk", f"direct=off,image_type=raw,path={wiring.volume({'in': b'a volume'})},readonly=on"),
        *("--fs", f"socket={wiring.share('/srv/files')},tag=files"),
        *("--net", f"mac={_MACS[0]},tap=tap-web"),
    ]
    script = f"""
volume data /dev/vda
echo "credferry-guest: volume $(cat /run/data/in)"
share files files
echo "credferry-guest: share $(cat /run/files/in)"
cat /proc/sys/kernel/random/boot_id >/run/files/out
network eth0 10.91.0.2/24
echo "credferry-guest: network $(echo guest | busybox nc -w 10 10.91.0.1 {SERVER_PORT})"
"""
    overlay = credential_printer(plain=["K", "vmm.notify_socket"]) | device_user(script)
    files = guest_files(deployment, "web", guest(Variant.TRIXIE), overlay)
    before = wiring.vsock()
    deployment.add_vm("web", _with_devices(files, devices, f"oem_strings=[{NOTIFY}]", before))

    def told(value: bytes, share: str) -> set[str]:
        notify = NOTIFY.partition("=")[2].encode()
        return {
            _printed("K", value, Variant.TRIXIE),
            _printed("vmm.notify_socket", notify, Variant.TRIXIE),
            "volume a volume",
            f"share {share}",
            "network the host heard guest",
        }

    deployment.credferry("agent", "--once")
    host.run("systemctl", "start", "microvm@web.service", timeout=_BOOT_SECONDS)
    # What a guest prints goes another way than what it says over vsock.
    host.wait(lambda: told(_FIRST, "first") <= set(_told(deployment, "web")), 20, "the guest's lines")
    first = _told(deployment, "web")
    assert set(first) - {DONE.removeprefix("credferry-guest: ")} == told(_FIRST, "first")
    assert deployment.unit("web")["Type"] == "notify"
    assert deployment.unit("web")["StatusText"] == "Ready."
    written = host.path("/srv/files/out").read_text()
    config = deployment.vm_info("web")["config"]
    assert [config["disks"][0]["readonly"], config["fs"][0]["tag"], config["vsock"]["cid"]] == [
        True,
        "files",
        5,
    ]
    assert config["platform"]["oem_strings"][0] == NOTIFY

    units = ["microvm@web.service", "microvm-tap-interfaces@web.service", "microvm-virtiofsd@web.service"]
    before_it = {unit: host.unit(unit)["InvocationID"] for unit in units}
    deployment.start_agent()
    host.write("/srv/files/in", "second\n")
    sops.publish({"api-key": _SECOND})
    deployment.wait_printed("web", _printed("K", _SECOND, Variant.TRIXIE), _BOOT_SECONDS)
    deployment.wait_in_step("web", _BOOT_SECONDS)
    host.wait(
        lambda: told(_SECOND, "second") <= set(_told(deployment, "web")[len(first) :]), 20, "its lines again"
    )
    again = _told(deployment, "web")[len(first) :]
    assert set(again) - {DONE.removeprefix("credferry-guest: ")} == told(_SECOND, "second")
    assert host.path("/srv/files/out").read_text() not in {"", written}
    after = {unit: host.unit(unit) for unit in units}
    assert all(after[unit]["ActiveState"] == "active" for unit in units)
    assert all(after[unit]["InvocationID"] != before_it[unit] for unit in units)
    assert deployment.starts("web") == 2


@pytest.mark.usefixtures("sops")
def test_macvtap_by_descriptor_carries_a_guest_into_another_network(deployment: Deployment) -> None:
    """Descriptors that the run script opens reach the hypervisor, and the guest talks through them.

    The macvtap lies on one end of a link whose other end is in another network namespace. The networks
    after it keep their place: first is first for the hypervisor and for the guest.
    """
    host, wiring = deployment.host, Wiring(deployment.host, "far")
    other_network(host, "lan", "uplink", "10.92.0.1/24")
    listen(host, "the other network", "ip", "netns", "exec", "lan")
    macvtap = Macvtap("mv-far", "uplink", _MACS[0])
    wiring.taps(macvtap, Tap("tap-far", "10.91.0.1/24", multi_queue=True))
    devices = ["--net", f"fd=[3,4],mac={_MACS[0]},num_queues=4"]
    devices += [f"mac={_MACS[1]},num_queues=4,tap=tap-far"]
    script = f"""
echo "credferry-guest: queues $(ls -d /sys/class/net/eth[01]/queues/rx-* | wc -l)"
echo "credferry-guest: links $(cat /sys/class/net/eth0/address /sys/class/net/eth1/address | tr '\\n' ' ')"
network eth0 10.92.0.2/24
echo "credferry-guest: network $(echo guest | busybox nc -w 10 10.92.0.1 {SERVER_PORT})"
"""
    overlay = credential_printer(plain=["K"]) | device_user(script)
    files = guest_files(deployment, "far", guest(Variant.BOOKWORM), overlay, cpus=2)
    deployment.add_vm("far", _with_devices(files, devices, "", macvtap.opened_as(3, 4)))
    deployment.credferry("agent", "--once")
    deployment.start_vm("far")
    deployment.wait_printed("far", DONE, _BOOT_SECONDS)
    assert set(_told(deployment, "far")) >= {
        _printed("K", _FIRST, Variant.BOOKWORM),
        f"links {' '.join(_MACS)}",
        "queues 4",
        "network the other network heard guest",
    }
    first, second = deployment.vm_info("far")["config"]["net"]
    assert (first["mac"], "tap" in first, len(first["fds"])) == (_MACS[0], False, 2)
    assert (second["mac"], second["tap"], "fds" in second) == (_MACS[1], "tap-far", False)
