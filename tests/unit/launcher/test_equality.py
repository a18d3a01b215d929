# SPDX-License-Identifier: MIT
"""The same command line both ways: to a real cloud-hypervisor, and through the launcher to an idle one.

Runs where ``CLOUD_HYPERVISOR`` names a binary; releases differ, so run it on each that matters. What is
compared is cloud-hypervisor's own record of the VM that it builds (the line that ``-v`` logs at vm.boot, a
``Debug`` of its whole configuration), and ``vm.info`` where the VM boots on any machine.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import re
import select
import shlex
import struct
import subprocess
import time
from contextlib import ExitStack
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from credferry.launcher.errors import LaunchError
from credferry.launcher.handoff import Delivery
from credferry.launcher.hypervisor import cmdline, schema, version, vmconfig
from tests.support.kernel import kernel

from .conftest import ROOT, Vm, credentials, within
from .test_main import UNSAFE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

BINARY = os.environ.get("CLOUD_HYPERVISOR", "")
if not BINARY or os.geteuid() != 0 or not os.access("/dev/kvm", os.W_OK):
    pytest.skip(
        "CLOUD_HYPERVISOR names no real cloud-hypervisor, or not root with KVM", allow_module_level=True
    )

MAC = "mac=02:00:00:00:01:01"
BUCKETS = (
    "bw_size=1000,bw_one_time_burst=10,bw_refill_time=100,"
    "ops_size=100,ops_one_time_burst=1,ops_refill_time=50"
)
NODES = (
    "--numa guest_numa_id=0,cpus=[0],distances=[1@20],memory_zones=[a] "
    "guest_numa_id=1,cpus=[1],distances=[0@20],memory_zones=b "
    "--cpus boot=2 --memory size=0 --memory-zone id=a,size=64M id=b,size=64M"
)
SYSTEM = (
    "--platform system_manufacturer=a,system_product_name=b,system_version=c,system_serial_number=d,"
    "system_sku_number=e,system_family=f,chassis_asset_tag=g"
)
HOTPLUG = (
    "--memory size=0,hotplug_method=virtio-mem "
    "--memory-zone id=a,size=128M,hotplug_size=256M,hotplugged_size=128M"
)
SEGMENTS = (
    "--memory size=0 --memory-zone id=a,size=64M --platform num_pci_segments=2 "
    "--numa guest_numa_id=0,cpus=0,memory_zones=[a],pci_segments=[0,1]"
)
WEIGHTS = "--pci-segment pci_segment=1,mmio32_aperture_weight=2,mmio64_aperture_weight=3"
UUID = "1ac73a63-c9b0-4f2f-a9e1-5c1f8b6f2c11"

BOOTS: list[str] = [
    "",
    "--cpus boot=2,max=4,topology=1:2:1:2,max_phys_bits=40",
    "--cpus boot=2,affinity=[0@[0-1],1@[1]]",
    "--cpus max=2,nested=off",
    "--cpus boot=1,core_scheduling=off",
    "--cpus boot=1,core_scheduling=VCPU",
    "--cpus boot=1,profile=Host",
    "--cpus ''",
    "--memory size=128M,shared=on,prefault=on,thp=off,file=/ignored",
    "--memory size=128M,mergeable=on,hugepages=off",
    "--memory size=128M,reserve=on",
    "--memory size=64M,hotplug_method=acpi,hotplug_size=1G",
    "--memory size=128M,hotplug_method=virtio-mem,hotplug_size=256M,hotplugged_size=128M",
    "--memory size=0,mergeable=on --memory-zone id=a,size=64M id=b,size=64M,mergeable=off",
    "--memory size=0 --memory-zone id=a,size=64M,shared=on,file={disk},prefault=on",
    "--memory size=0 --memory-zone id=a,size=64M,reserve=on,host_numa_node=0",
    HOTPLUG,
    "--initramfs {file} --cmdline 'console=ttyS0 a=\"b c\",d=[e]'",
    "--cmdline ''",
    "--disk path={disk},readonly=on,direct=off,num_queues=1,queue_size=256,serial=a_b,id=d,iommu=on",
    "--disk path={disk},_disable_io_uring=on,_disable_aio=on",
    "--disk path={disk},backing_files=off,sparse=off,image_type=raw,lock_granularity=full",
    "--disk path={disk},queue_affinity=[0@[0-1]],pci_device_id=5",
    "--disk path={disk},image_type=RAW,lock_granularity=byte-range",
    "--disk path={disk}," + BUCKETS,
    "--disk path={disk},bw_size=1000,ops_refill_time=3",
    "--disk path={disk},rate_limit_group=g --rate-limit-group id=g," + BUCKETS,
    "--disk path={disk},id=a --disk path={file},readonly=on,id=b path={file},readonly=on",
    f"--net tap=cf0,{MAC},ip=10.9.8.7,mask=255.255.255.0,host_mac=02:00:00:00:01:02,mtu=1400",
    f"--net tap=cf0,{MAC},num_queues=4,queue_size=512,iommu=on,id=n,pci_device_id=7 --cpus boot=2",
    f"--net tap=cf0,{MAC},offload_tso=off,offload_ufo=off,offload_csum=on",
    f"--net tap=cf0,{MAC},{BUCKETS} tap=cf1,mac=02:00:00:00:01:03",
    "--rng src=/dev/urandom,iommu=on",
    "--rng iommu=off",
    "--rng id=r,pci_device_id=9",
    "--rtc",
    "--rtc id=c,iommu=on,pci_device_id=8",
    "--balloon size=0",
    "--balloon size=1M,deflate_on_oom=on,free_page_reporting=on",
    "--balloon id=b,iommu=on,pci_device_id=8",
    "--pmem file={pmem},discard_writes=on,id=p,iommu=on",
    "--pmem file={pmem},size=2M,pci_device_id=6",
    "--serial null --console off",
    "--serial pty --console pty,iommu=on",
    "--serial file={out} --console file={out}",
    "--serial socket=serial.sock --console null",
    "--serial off --console null,id=c,pci_device_id=4",
    "--serial tty --console off",
    "--debug-console off,iobase=0xe9",
    "--debug-console null,iobase=0xe8",
    "--debug-console null,iobase=0x00402",
    "--memory size=many,size=128M,shared=maybe,shared=off",
    "--cpus 'boot=\"2\",affinity=[0@ [0-1] ,1@[1]]'",
    "--debug-console file={out}",
    "--vsock cid=3,socket=notify.vsock",
    "--vsock cid=4294967294,socket=v.sock,iommu=on,id=v,pci_device_id=3",
    "--pvpanic --watchdog",
    NODES,
    SEGMENTS,
    "--platform num_pci_segments=3,iommu_segments=[1-2],iommu_address_width=48",
    f"--platform num_pci_segments=2 {WEIGHTS}",
    "--platform num_pci_segments=2 --disk path={disk},pci_segment=1 --vsock cid=3,socket=v,pci_segment=1",
    "--platform ''",
    f"--platform serial_number=a,uuid={UUID},oem_strings=[a,b=c]",
    f"--platform system_uuid={UUID},uuid=2ac73a63-c9b0-4f2f-a9e1-5c1f8b6f2c11",
    SYSTEM,
    '--platform \'system_family="a,b""c",oem_strings=[a="x,y",c]\'',
    "--platform vfio_p2p_dma=off",
    "--platform oem_strings=",
    "--firmware {kernel}",
    "--seccomp log",
    "--no-shutdown",
]
"""Command lines that any machine with KVM boots."""

BUILT: list[str] = [
    "--cpus boot=1,kvm_hyperv=on",
    "--cpus boot=1,features=[amx]",
    "--fs tag=ro-store,socket=fs.sock --memory shared=on",
    "--fs tag=a,socket=a,num_queues=2,queue_size=512,id=f tag=b,socket=b --memory shared=on --cpus boot=2",
    "--fs tag=a,socket=a,pci_segment=1,pci_device_id=4 --memory shared=on --platform num_pci_segments=2",
    "--disk vhost_user=on,socket=blk.sock,image_type=raw --memory shared=on",
    "--disk path={disk},image_type=qcow2",
    "--disk path={disk},image_type=vhd",
    "--disk path={disk},image_type=VHDX,backing_files=on",
    f"--net vhost_user=on,socket=net.sock,vhost_mode=client,{MAC} --memory shared=on",
    f"--net vhost_user=on,socket=net.sock,vhost_mode=Server,{MAC} --memory shared=on",
    "--generic-vhost-user virtio_id=fs,socket=g,queue_sizes=[8,64],id=g,pci_segment=0 --memory shared=on",
    "--generic-vhost-user device_type=26,socket=g,queue_sizes=[8],pci_device_id=5 --memory shared=on",
    "--generic-vhost-user virtio_id=net,device_type=usb,socket=g,queue_sizes=8 --memory shared=on",
    "--device path=/sys/bus/pci/devices/0000:ff:1f.7 path=/sys/bus/pci/devices/0000:ff:1f.6,iommu=on,id=d",
    "--device path=/sys/bus/pci/devices/0000:ff:1f.7,x_nv_gpudirect_clique=3,pci_device_id=5",
    "--device path=/sys/bus/pci/devices/0000:ff:1f.7,x_exclude_mmap_bars=[0,2-3],pci_segment=0",
    "--user-device socket=u.sock,id=u --memory shared=on",
    "--user-device socket=u.sock,pci_device_id=5,pci_segment=0 --memory shared=on",
    "--vdpa path=/dev/vhost-vdpa-none,num_queues=2,iommu=on,id=v",
    "--vdpa path=/dev/vhost-vdpa-none,pci_device_id=5,pci_segment=0",
    "--tpm socket=tpm.sock",
    "--platform iommufd=on",
    "--debug-console tty",
    "--debug-console pty",
    "--numa guest_numa_id=0,device_id=dev --device path=/sys/bus/pci/devices/0000:ff:1f.7,id=dev",
    "--landlock",
    "--landlock --landlock-rules path={directory},access=rw path=/usr,access=r",
]
"""Those that need hardware or a peer: cloud-hypervisor begins to build the VM, and that is compared."""

CREATED: list[str] = [
    "--memory size=128M,hugepages=on,hugepage_size=2M",
    "--memory size=0 --memory-zone id=a,size=64M,hugepages=on,hugepage_size=2M",
]
"""Those that need huge pages, which are taken before cloud-hypervisor says what it builds."""

UNREADABLE: list[str] = [
    "--memory 'size=128M,shared=\"on\"'",
    "--disk path={disk},lock_granularity=Full",
    "--debug-console socket=debug.sock",
    "--debug-console null,iobase=0x10000",
    "--debug-console null,iobase=402",
    "--cpus boot=2,max",
]
"""Those that the command line's own parser refuses since 48."""

NOT_HERE = {
    ("numa", "sgx_epc_sections"),  # up to v47
    ("sgx-epc", "id"),
    ("sgx-epc", "size"),
    ("sgx-epc", "prefault"),
    ("net", "fd"),  # a test of its own
    ("console", "socket"),  # known, and then refused
    *((option, "pci_segment") for option in ("net", "pmem", "rng", "rtc", "balloon", "console")),
}
"""Keys that no line above has: the segment is the same code for each device."""

GENERATED: list[dict[str, Any]] = [
    case
    for case in json.loads((ROOT / "tests/data/microvm-nix-commands.json").read_text())["cases"]
    if case.get("argv") and case["system"] == "x86_64-linux" and case["name"] not in UNSAFE
]
_NEEDS = {"fs", "devices", "landlock_enable"}


@dataclass(frozen=True)
class Files:
    """Files that command lines name."""

    directory: Path

    def make(self) -> None:
        """Each with content that cloud-hypervisor takes."""
        (self.directory / "kernel").write_bytes(kernel())
        for name, size in (("disk", 64 << 20), ("pmem", 2 << 20), ("file", 1 << 20)):
            with (self.directory / name).open("wb") as file:
                file.truncate(size)

    def another(self) -> Path:
        """One more disk."""
        path = self.directory / f"disk{len(list(self.directory.iterdir()))}"
        with path.open("wb") as file:
            file.truncate(1 << 20)
        return path

    def fill(self, line: str) -> list[str]:
        """A command line's words, with a kernel where it has none."""
        names = ("kernel", "disk", "pmem", "file", "out")
        paths = {name: str(self.directory / name) for name in names}
        words = [word.format(directory=self.directory, **paths) for word in shlex.split(line)]
        boot = [] if "--firmware" in words else ["--kernel", paths["kernel"]]
        memory = [] if "--memory" in words else ["--memory", "size=128M"]
        quiet = (
            [] if "--serial" in words or "--console" in words else ["--serial", "null", "--console", "null"]
        )
        return [*boot, *memory, *quiet, *words]


class Direct(Vm):
    """cloud-hypervisor with the options on its command line, in place of the launcher."""

    @property
    def socket(self) -> Path:
        """Of its API."""
        return self.directory / "direct.sock"

    def command(self, *argv: str) -> list[str]:
        """The binary itself."""
        return [str(self.hypervisor), *argv, "--api-socket", f"path={self.socket}"]


BUILDS = re.compile(r"Booting VM from config: (.*)\n")
CREATES = re.compile(r"API request event: VmCreate (.*)\n")


@dataclass(frozen=True)
class Said:
    """What cloud-hypervisor said of one VM; None where it ended without a word on it."""

    built: str | None
    info: Any


def run(vm: Vm, argv: Sequence[str], pattern: re.Pattern[str], fds: Sequence[int], *, runs: bool) -> Said:
    """Start a VM, hear what it is built from, and end it: one after the other, as disks are locked."""
    vm.directory.mkdir(exist_ok=True)
    credentials(vm.directory / "creds", {}, Delivery(guest_systemd=257))
    log = vm.directory / "log"
    try:
        vm.start(*argv, "-v", "--log-file", "log", pass_fds=fds)
        _wait(vm, lambda: log.exists() and pattern.search(log.read_text()) is not None, may_end=True)
        found = pattern.search(log.read_text()) if log.exists() else None
        if found is None:
            return Said(None, None)
        info = None
        if runs:
            _wait(vm, lambda: _running(vm))
            info = json.loads(_same(json.dumps(vm.call("GET", "vm.info")[1]["config"])))
        return Said(_same(found[1]), info)
    finally:
        vm.end()


def _running(vm: Vm) -> bool:
    try:
        status, info = vm.call("GET", "vm.info")
    except OSError:  # not there yet, or just going
        return False
    return status == HTTPStatus.OK and info["state"] == "Running"


def _same(text: str) -> str:
    """Without what is another at each start: descriptors, pseudo-terminals, a tap device's own address."""
    text = re.sub(r"fds: Some\(\[[-0-9, ]+\]\)", "fds: Some", text)
    text = re.sub(r'"fds": \[[-0-9, ]+\]', '"fds": []', text)
    text = re.sub(r'"host_mac": "[0-9a-f:]+"', '"host_mac": ""', text)
    return re.sub(r"/dev/pts/[0-9]+", "/dev/pts/N", text)


def both(
    files: Files,
    argv: Sequence[str],
    fds: Sequence[int] = (),
    *,
    pattern: re.Pattern[str] = BUILDS,
    runs: bool = False,
) -> tuple[Said, Said]:
    """One command line both ways: cloud-hypervisor's own, and the launcher's."""
    direct, launched = (kind(files.directory / kind.__name__, Path(BINARY)) for kind in (Direct, Vm))
    return (
        run(direct, argv, pattern, fds, runs=runs),
        run(launched, argv, pattern, fds, runs=runs),
    )


def _wait(vm: Vm, done: Callable[[], bool], *, may_end: bool = False) -> None:
    pidfd = os.pidfd_open(vm.pid)
    try:
        deadline = time.monotonic() + within()
        while time.monotonic() < deadline:
            if done():
                return
            if select.select([pidfd], [], [], 0.01)[0]:
                if done() or may_end:
                    return
                break
    finally:
        os.close(pidfd)
    pytest.fail(f"{type(vm).__name__}: {vm.said()}")


@pytest.fixture(autouse=True)
def network() -> Iterator[None]:
    """A network of the test's own: for this thread, and for what it starts."""
    if not os.access("/proc/self/ns/net", os.R_OK) or os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    clone_newnet = 0x40000000
    with Path("/proc/thread-self/ns/net").open("rb") as before:
        assert libc.unshare(clone_newnet) == 0
        yield
        assert libc.setns(before.fileno(), clone_newnet) == 0


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """Files for command lines."""
    made = Files(tmp_path)
    made.make()
    return made


def refused(argv: Sequence[str]) -> bool:
    """Whether this release's command line does not know an option that the line has."""
    _, major = version.ask(BINARY)
    try:
        vmconfig.convert(cmdline.parse(argv), major)
    except LaunchError as error:
        if not re.search("is not known to cloud-hypervisor|is given more than once", str(error)):
            raise
        return True
    return False


def check_refused(files: Files, argv: Sequence[str]) -> None:
    """The real one refuses it at once, too."""
    done = subprocess.run(
        [BINARY, *argv], cwd=files.directory, capture_output=True, text=True, check=False, timeout=within()
    )
    assert done.returncode != 0
    assert re.search(
        "(?i)unknown option|unexpected argument|multiple times|InvalidSyntax|parsing", done.stderr
    ), done.stderr


@pytest.mark.parametrize("line", BOOTS)
def test_the_vm_is_the_same(line: str, files: Files) -> None:
    """Built from the same configuration, and ``vm.info`` says the same of it, field by field."""
    argv = files.fill(line)
    if refused(argv):
        check_refused(files, argv)
        return
    direct, launched = both(files, argv, runs=True)
    assert launched.built == direct.built is not None
    assert launched.info == direct.info is not None


@pytest.mark.parametrize("line", [*BUILT, *CREATED])
def test_the_vm_is_built_the_same(line: str, files: Files) -> None:
    """Where it needs what this machine may not have."""
    argv = files.fill(line)
    if refused(argv):
        check_refused(files, argv)
        return
    direct, launched = both(files, argv, pattern=CREATES if line in CREATED else BUILDS)
    assert launched.built == direct.built is not None


def is_refused_by_the_launcher(argv: Sequence[str]) -> bool:
    """Whether the launcher refuses a command line for this release."""
    try:
        vmconfig.convert(cmdline.parse(argv), version.ask(BINARY)[1])
    except LaunchError:
        return True
    return False


@pytest.mark.parametrize("line", UNREADABLE)
def test_what_cannot_be_read_is_refused_by_both(line: str, files: Files) -> None:
    """The launcher starts no VM that cloud-hypervisor's own command line would not start."""
    argv = files.fill(line)
    assert is_refused_by_the_launcher(argv)
    check_refused(files, argv)


def test_blanks_around_pairs_are_read_as_this_release_reads_them(files: Files) -> None:
    """Releases up to 53 refuse them."""
    argv = files.fill("--cpus 'boot=2,affinity=[0@[0-1], 1@[1]]'")
    if is_refused_by_the_launcher(argv):
        check_refused(files, argv)
        return
    direct, launched = both(files, argv, runs=True)
    assert launched.built == direct.built is not None


def test_every_key_is_in_a_line_above() -> None:
    """The tables leave nothing out but what they say."""
    shown = set()
    for line in [*BOOTS, *BUILT, *CREATED]:
        for option in cmdline.parse(["--kernel", "k", *shlex.split(line)]):
            for value in option.values:
                shown |= {(option.name, key) for key in schema.OPTIONS.get(option.name, {}) if key in value}
    every = {(option, key) for option, keys in schema.OPTIONS.items() for key in keys}
    assert every - shown == NOT_HERE
    whole = {
        word[2:]
        for line in [*BOOTS, *BUILT, *CREATED]
        for word in shlex.split(line)
        if word.startswith("--")
    }
    assert {*schema.SECTIONS, *schema.LISTS, *schema.SWITCHES, "memory-zone"} - whole == {"sgx-epc"}


def _tap(name: str, queues: int) -> list[int]:
    """Descriptors of one tap device, one a queue, as microvm-run opens them; it goes with the last."""
    iff_tap, iff_no_pi, iff_vnet_hdr, iff_multi_queue, tunsetiff = 0x2, 0x1000, 0x4000, 0x100, 0x400454CA
    fds = []
    for _ in range(queues):
        fds.append(os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
        flags = iff_tap | iff_no_pi | iff_vnet_hdr | iff_multi_queue
        fcntl.ioctl(fds[-1], tunsetiff, struct.pack("16sH22x", name.encode(), flags))
    return fds


def test_networks_by_descriptor_are_the_same_in_the_same_order(files: Files) -> None:
    """Inherited by one, sent with SCM_RIGHTS through vm.add-net to the other; a tap by name between them."""
    with ExitStack() as stack:
        first, second = _tap("cfq0", 2), _tap("cfq1", 1)
        for fd in (*first, *second):
            stack.callback(os.close, fd)
        argv = files.fill(
            f"--net tap=cf0,{MAC} fd=[{first[0]},{first[1]}],mac=02:00:00:00:01:04,num_queues=4,id=two"
            f" tap=cf1,mac=02:00:00:00:01:05 fd={second[0]},mac=02:00:00:00:01:06 --cpus boot=2"
        )
        direct, launched = both(files, argv, (*first, *second), runs=True)
    assert launched.built == direct.built is not None
    assert launched.info == direct.info is not None


REWRITTEN = {
    "kernel": (r".*", "{directory}/kernel"),
    "firmware": (r".*", "{directory}/kernel"),
    "initramfs": (r".*", "{directory}/file"),
    "pmem": (r"(?<=file=)[^,]*", "{directory}/pmem"),
    "landlock-rules": (r"(?<=path=)[^,]*", "{directory}"),
    "net": (r"fd=(\[[^]]*\]|[^,]*)", "tap=cf9"),
    "serial": (r"(?<=socket=)[^,]*", "serial.sock"),
    "vsock": (r"(?<=socket=)[^,]*", "vm.vsock"),
    "cpus": (r",(kvm_hyperv=on|features=\[?amx\]?)", ""),
}
"""What names files of another machine, or needs what this one may not have."""


def _here(case: dict[str, Any], files: Files) -> list[str]:
    """A generated command line with files of this machine, and without what the VMM itself is told."""
    words: list[str] = []
    for option in cmdline.parse(case["argv"][1:]):
        if option.name in {"api-socket", "event-monitor", "log-file", "-v"}:
            continue
        pattern, new = REWRITTEN.get(option.name, ("$", ""))
        values = [re.sub(pattern, new.format(directory=files.directory), v, count=1) for v in option.values]
        if option.name == "disk":
            values = [re.sub(r"(?<=path=)[^,]*", str(files.another()), value) for value in values]
        words += [f"--{option.name}", *values]
    return words


@pytest.mark.parametrize("case", GENERATED, ids=lambda case: case["name"])
def test_what_microvm_nix_generates_gives_the_same_vm(case: dict[str, Any], files: Files) -> None:
    """Its command lines, whichever release they were generated for; or a refusal on both sides."""
    _, major = version.ask(BINARY)
    try:
        argv = _here(case, files)
        document = vmconfig.convert(cmdline.parse(argv), major).document
    except LaunchError:
        done = subprocess.run(
            [BINARY, *case["argv"][1:]],
            cwd=files.directory,
            capture_output=True,
            check=False,
            timeout=within(),
        )
        assert done.returncode != 0
        return
    huge = document["memory"].get("hugepages", False)
    images = {disk.get("image_type", "Raw") for disk in document.get("disks", ())}
    pinned = "affinity" in document["cpus"]
    runs = not (huge or pinned or _NEEDS & document.keys()) and images <= {"Raw"}
    direct, launched = both(files, argv, pattern=CREATES if huge else BUILDS, runs=runs)
    assert launched.built == direct.built
    assert launched.info == direct.info
