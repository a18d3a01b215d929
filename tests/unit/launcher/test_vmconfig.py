# SPDX-License-Identifier: MIT
"""Command lines → ``vm.create`` documents, against what cloud-hypervisor's own parser made of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from credferry.launcher.errors import Exit, LaunchError
from credferry.launcher.hypervisor import cmdline, releases, vmconfig

DATA = Path(__file__).parents[2] / "data" / "microvm-nix-commands.json"
CASES: list[dict[str, Any]] = json.loads(DATA.read_text())["cases"]
CONVERTED = [case for case in CASES if case.get("vm_config") is not None]
REFUSED = [case for case in CASES if case.get("argv") and case.get("vm_config") is None]
REPEATED = "second --platform with oem_strings slips past the check"
KERNEL = ("--kernel", "/k")


def convert(*argv: str, major: int = 53) -> vmconfig.ConvertedCommandLine:
    """The VM of a command line."""
    return vmconfig.convert(cmdline.parse(argv), major)


def of_case(case: dict[str, Any]) -> vmconfig.ConvertedCommandLine:
    """The VM of a recorded case."""
    return convert(*case["argv"][1:], major=int(case["cloud_hypervisor_version"].split(".")[0]))


@pytest.mark.parametrize(
    "case", [case for case in CONVERTED if case["name"] != REPEATED], ids=lambda case: case["name"]
)
def test_a_recorded_command_line_gives_the_recorded_document(case: dict[str, Any]) -> None:
    """Document, networks to be added and the idle VMM's own options are those of the record."""
    vm = of_case(case)
    assert vm.document == case["vm_config"]
    assert [{"config": net.config, "fds": list(net.fds)} for net in vm.add_net] == case.get("add_net", [])
    assert list(vm.vmm) == case["vmm_argv"][1:]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case["name"])
def test_what_cloud_hypervisor_refuses_is_refused_by_name(case: dict[str, Any]) -> None:
    """Also the versions that are too old to be known; the text names an option or the version."""
    with pytest.raises(LaunchError) as caught:
        of_case(case)
    assert caught.value.status is Exit.USAGE
    assert "--" in str(caught.value) or "older than 46" in str(caught.value)


def test_repeated_oem_strings_are_refused() -> None:
    """cloud-hypervisor keeps the last list and silently loses the notify socket; a launcher must not."""
    (case,) = (case for case in CASES if case["name"] == REPEATED)
    with pytest.raises(LaunchError, match="oem_strings occurs twice"):
        of_case(case)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (("--memory", "size=1G"), {"memory": {"size": 1 << 30}}),
        (("--memory", "shared=on"), {"memory": {"size": 512 << 20, "shared": True}}),
        (
            ("--memory", "mergeable=on", "--memory-zone", "id=a,size=1K", "id=b,mergeable=off"),
            {
                "memory": {
                    "size": 512 << 20,
                    "mergeable": True,
                    "zones": [
                        {"id": "a", "size": 1024, "mergeable": True},
                        {"id": "b", "size": 512 << 20, "mergeable": False},
                    ],
                }
            },
        ),
        (("--memory", "size=1G,file=/ignored"), {"memory": {"size": 1 << 30}}),
        (("--cpus", "boot=1,profile=Host"), {"cpus": {"boot_vcpus": 1, "max_vcpus": 1, "profile": "Host"}}),
        (
            ("--cpus", "affinity=[0@[1-2],1@ [0] ]"),
            {
                "cpus": {
                    "boot_vcpus": 1,
                    "max_vcpus": 1,
                    "affinity": [{"vcpu": 0, "host_cpus": [1, 2]}, {"vcpu": 1, "host_cpus": [0]}],
                }
            },
        ),
        (
            ("--generic-vhost-user", "virtio_id=7,device_type=fs,socket=/s,queue_sizes=[512,64],id=g"),
            {
                "generic_vhost_user": [
                    {"device_type": 26, "socket": "/s", "queue_sizes": [512, 64], "id": "g"}
                ]
            },
        ),
        (("--cpus", "max=4"), {"cpus": {"boot_vcpus": 1, "max_vcpus": 4}}),
        (
            ("--cpus", "boot=2,topology=1:2:1:1"),
            {
                "cpus": {
                    "boot_vcpus": 2,
                    "max_vcpus": 2,
                    "topology": {
                        "threads_per_core": 1,
                        "cores_per_die": 2,
                        "dies_per_package": 1,
                        "packages": 1,
                    },
                }
            },
        ),
        (("--balloon", "deflate_on_oom=on"), {"balloon": {"size": 0, "deflate_on_oom": True}}),
        (("--rng", "iommu=on"), {"rng": {"src": "/dev/urandom", "iommu": True}}),
        (("--rtc",), {"rtc": {}}),
        (("--rtc", "id=r"), {"rtc": {"id": "r"}}),
        (("--serial", "file=/log"), {"serial": {"mode": "File", "file": "/log"}}),
        (("--console", "tty,iommu=on"), {"console": {"mode": "Tty", "iommu": True}}),
        (("--debug-console", "tty,iobase=0xe9"), {"debug_console": {"mode": "Tty", "iobase": 0xE9}}),
        (
            ("--debug-console", "tty,iobase=0x00402"),
            {"debug_console": {"mode": "Tty", "iobase": 0x402}},
        ),
        (("--debug-console", "off,iobase=0x+0"), {"debug_console": {"mode": "Off", "iobase": 0}}),
        (("--memory", "size=many,size=1G"), {"memory": {"size": 1 << 30}}),
        (("--memory", "shared=on,shared="), {"memory": {"size": 512 << 20}}),
        (("--cpus", 'boot="2"'), {"cpus": {"boot_vcpus": 2, "max_vcpus": 2}}),
        (
            ("--disk", "path=/d,lock_granularity=Full,lock_granularity=full"),
            {"disks": [{"path": "/d", "lock_granularity": "Full"}]},
        ),
        (
            ("--disk", "vhost_user=on,socket=/s,image_type=raw"),
            {"disks": [{"vhost_user": True, "vhost_socket": "/s"}]},
        ),
        (("--disk", "path=/d,bw_size=5"), {"disks": [{"path": "/d"}]}),
        (
            ("--platform", "system_uuid=a,uuid=b,iommu_address_width=40"),
            {"platform": {"system_uuid": "a", "iommu_address_width_bits": 40}},
        ),
        (("--platform=num_pci_segments=2",), {"platform": {"num_pci_segments": 2}}),
        (
            ("--numa", "guest_numa_id=0,cpus=[0-1,3],distances=[1@20],memory_zones=[a,b]"),
            {
                "numa": [
                    {
                        "guest_numa_id": 0,
                        "cpus": [0, 1, 3],
                        "distances": [{"destination": 1, "distance": 20}],
                        "memory_zones": ["a", "b"],
                    }
                ]
            },
        ),
        (("--tpm", "socket=/t"), {"tpm": {"socket": "/t"}}),
        (("--vdpa", "path=/v,num_queues=2"), {"vdpa": [{"path": "/v", "num_queues": 2}]}),
        (("--user-device", "socket=/u"), {"user_devices": [{"socket": "/u"}]}),
        (
            ("--memory", "size=1G,hotplug_method=virtio-mem,hotplug_size=2G,hotplugged_size=1G"),
            {
                "memory": {
                    "size": 1 << 30,
                    "hotplug_method": "VirtioMem",
                    "hotplug_size": 2 << 30,
                    "hotplugged_size": 1 << 30,
                }
            },
        ),
    ],
)
def test_defaults_that_differ_between_the_two_ways_in(
    argv: tuple[str, ...], expected: dict[str, Any]
) -> None:
    """Forced keys are sent, other defaults are left to cloud-hypervisor, names are JSON's."""
    document = convert(*KERNEL, *argv).document
    del document["payload"]
    assert document == expected


def test_blanks_around_pairs_are_taken_since_54() -> None:
    """cloud-hypervisor 53 and older refuse them."""
    document = convert(*KERNEL, "--cpus", "affinity=[0@[1-2], 1@[0]]", major=54).document
    assert [pair["vcpu"] for pair in document["cpus"]["affinity"]] == [0, 1]


def test_quotes_around_a_switch_are_dropped_up_to_47() -> None:
    """Since 48, a switch keeps them, and the parser refuses it."""
    assert convert(*KERNEL, "--memory", 'shared="on"', major=47).document["memory"]["shared"] is True


def test_older_releases_keep_their_own_names() -> None:
    """Up to v52 JSON knows ``uuid`` and ignores ``system_uuid``; zones inherit nothing before v52."""
    assert convert(*KERNEL, "--platform", "uuid=u", major=52).document["platform"] == {"uuid": "u"}
    zones = convert(*KERNEL, "--memory", "mergeable=on", "--memory-zone", "id=a", major=51).document[
        "memory"
    ]
    assert zones["zones"] == [{"id": "a", "size": 512 << 20}]
    assert convert(*KERNEL, "--numa", "cpus=[0]", major=50).document["numa"] == [
        {"cpus": [0], "guest_numa_id": 0}
    ]


def test_lists_are_repeated_where_the_release_lets_them() -> None:
    """Since v52; before, its own command line refuses the second."""
    twice = (*KERNEL, "--disk", "path=a", "--disk", "path=b")
    assert convert(*twice, major=52).document["disks"] == [{"path": "a"}, {"path": "b"}]
    with pytest.raises(LaunchError, match="--disk is given more than once"):
        convert(*twice, major=51)


def test_options_that_went_are_taken_by_the_releases_that_had_them() -> None:
    """SGX enclaves, up to v47."""
    document = convert(
        *KERNEL,
        *("--sgx-epc", "id=a,size=64M", "id=b,prefault=on"),
        *("--numa", "guest_numa_id=0,sgx_epc_sections=[a,b]"),
        major=47,
    ).document
    assert document["sgx_epc"] == [{"id": "a", "size": 64 << 20}, {"id": "b", "prefault": True}]
    assert document["numa"] == [{"guest_numa_id": 0, "sgx_epc_sections": ["a", "b"]}]


@pytest.mark.parametrize(("option", "key"), sorted(releases.SINCE), ids="-".join)
def test_a_release_that_is_too_old_is_named_with_the_first_that_will_do(option: str, key: str) -> None:
    """Each entry of the table: refused by the release before, as its own command line does."""
    since = releases.SINCE[option, key]
    value = [f"{key}=1"] if key else ["x"] if option in cmdline.SINGLE | cmdline.LISTS else []
    with pytest.raises(
        LaunchError, match=rf"{key or option} is not known.*use cloud-hypervisor {since} or later"
    ):
        convert(*KERNEL, f"--{option}", *value, major=since - 1)


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        ((*KERNEL, "--restore", "source_url=canary"), "--restore"),
        ((*KERNEL, "--gdb", "canary"), "--gdb"),
        ((*KERNEL, "--disk", "path=canary,colour=canary"), "--disk has a key colour"),
        ((*KERNEL, "--platform", "oem_strings=[a],canary=b"), "--platform has a key that"),
        ((*KERNEL, "--device", "fd=7"), "--device: fd does not go through the API"),
        ((*KERNEL, "--platform", "iommufd_fd=7"), "--platform: iommufd_fd does not go through the API"),
        ((*KERNEL, "--platform", "tdx=on"), "--platform: tdx does not go through the API"),
        ((*KERNEL, "--fw-cfg-config", "items=[canary]"), "--fw-cfg-config does not go through the API"),
        ((*KERNEL, "--igvm", "canary"), "--igvm does not go through the API"),
        ((*KERNEL, "--host-data", "canary"), "--host-data does not go through the API"),
        ((*KERNEL, "--ivshmem", "path=canary"), "--ivshmem does not go through the API"),
        ((*KERNEL, "--pvmemcontrol"), "--pvmemcontrol does not go through the API"),
        ((*KERNEL, "--sgx-epc", "id=canary"), "--sgx-epc is not known to cloud-hypervisor 53"),
        ((*KERNEL, "--generic-vhost-user", "socket=canary,queue_sizes=[8]"), "device_type is missing"),
        ((*KERNEL, "--generic-vhost-user", "socket=s,queue_sizes=[8],device_type=iommu"), "device_type"),
        ((*KERNEL, "--numa", "guest_numa_id=1,device_id=canary,cpus=[0]"), "--numa: device_id"),
        ((*KERNEL, "--memory", "size=canary"), "--memory: the value of size"),
        ((*KERNEL, "--cpus", "boot=-1"), "--cpus: the value of boot"),
        ((*KERNEL, "--fs", "tag=canary"), "--fs: socket is missing"),
        ((*KERNEL, "--serial", "canary"), "--serial"),
        ((*KERNEL, "--serial", "file="), "--serial: file has no value"),
        ((*KERNEL, "--watchdog", "canary"), "belongs to no option"),
        ((*KERNEL, "--watchdog=canary"), "--watchdog takes no value"),
        ((*KERNEL, "--watchdog", "--watchdog"), "--watchdog is given more than once"),
        ((*KERNEL, "--kernel=/canary"), "--kernel is given more than once"),
        ((*KERNEL, "--", "canary"), "belongs to no option"),
        (("canary",), "belongs to no option"),
        (("--cpus", "boot=1"), "--kernel"),
        ((*KERNEL, "--firmware", "/canary"), "--firmware"),
        ((*KERNEL, "--memory", "shared=on,mergeable=on"), "--memory is both"),
        ((*KERNEL, "--rate-limit-group", "id=canary"), "--rate-limit-group limits nothing"),
        ((*KERNEL, "--numa", "guest_numa_id=0,cpus=[0-99999999]"), "--numa: the value of cpus"),
        ((*KERNEL, "--cpus", "features=canary"), "--cpus: the value of features"),
        ((*KERNEL, "--memory", 'shared="on"'), "--memory: the value of shared"),
        ((*KERNEL, "--memory", "size,size=1G"), "--memory: size has no value"),
        ((*KERNEL, "--disk", "path=canary,lock_granularity=Full"), "--disk: the value of lock_granularity"),
        ((*KERNEL, "--debug-console", "socket=/canary"), "--debug-console has a key socket"),
        ((*KERNEL, "--debug-console", "tty,socket=/canary"), "--debug-console has a key socket"),
        ((*KERNEL, "--debug-console", "off,iobase=0x10000"), "--debug-console: the value of iobase"),
        ((*KERNEL, "--debug-console", "off,iobase=0x"), "--debug-console: the value of iobase"),
        ((*KERNEL, "--debug-console", "off,iobase=402"), "--debug-console: the value of iobase"),
        ((*KERNEL, "--cpus", "affinity=[0@[1-2], 1@[0]]"), "--cpus: the value of affinity"),
    ],
)
def test_refusals_name_the_option_and_never_its_value(argv: tuple[str, ...], named: str) -> None:
    """Each refusal is one line, has the usage status and does not quote what it refuses."""
    with pytest.raises(LaunchError) as caught:
        convert(*argv)
    assert named in str(caught.value)
    assert "canary" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.status is Exit.USAGE


def test_options_without_credentials_in_their_repr() -> None:
    """A repr in a traceback or a log shows the option's name only."""
    (option,) = cmdline.parse(["--platform", "oem_strings=[canary]"])
    assert repr(option) == "Option(name='platform')"


def test_an_error_holds_nothing_that_a_terminal_would_obey() -> None:
    """The name of an option that nobody knows is quoted with its control characters escaped."""
    with pytest.raises(LaunchError) as caught:
        vmconfig.convert(cmdline.parse(["--watch\tdog\x1b[31m", "on"]), 53)
    assert str(caught.value).startswith(r"--watch\tdog\x1b[31m is not known to the api channel")
    assert caught.value.args[0].isprintable()
