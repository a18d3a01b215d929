# SPDX-License-Identifier: MIT
"""The fields of a VM's configuration, in the order in which ``vm.info`` shows them.

Names, order and defaults are cloud-hypervisor v53's (vmm/src/vm_config.rs).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .schema import Choice, Field, Json, Kind, Many, Scalar, Struct, fill, random_mac

if TYPE_CHECKING:
    from collections.abc import Iterable

_BOOL, _NUMBER, _TEXT, _PATH = Scalar.BOOL, Scalar.NUMBER, Scalar.TEXT, Scalar.PATH


def _default(kind: Kind, value: Any) -> Field:  # noqa: ANN401 (any JSON)
    return Field(kind, lambda: value)


def _choice(*names: str) -> Field:
    return Field(Choice(names), lambda: names[0])


def _empty(struct: Struct) -> Field:
    return Field(struct, lambda: fill(struct, {}))


_OFF, _ON = _default(_BOOL, value=False), _default(_BOOL, value=True)
_NEEDED_PATH, _NEEDED_NUMBER = Field(_PATH, required=True), Field(_NUMBER, required=True)
_NEEDED_TEXT = Field(_TEXT, required=True)
_PCI = {
    "id": Field(_TEXT),
    "iommu": Field(_BOOL, lambda: False, hidden_if_false=True),
    "pci_segment": _default(_NUMBER, 0),
    "pci_device_id": Field(_NUMBER),
}
_CONSOLE_MODE = Field(Choice(("Off", "Pty", "Tty", "File", "Socket", "Null")), required=True)
_CONSOLE = {"file": Field(_PATH), "mode": _CONSOLE_MODE, "socket": Field(_PATH)}
_BUCKET = Struct(
    {"size": _NEEDED_NUMBER, "one_time_burst": Field(_NUMBER), "refill_time": _NEEDED_NUMBER}, nulls=True
)
_LIMITER = Struct({"bandwidth": Field(_BUCKET), "ops": Field(_BUCKET)}, closed=True, nulls=True)

_CPUS = Struct(
    {
        "boot_vcpus": _NEEDED_NUMBER,
        "max_vcpus": _NEEDED_NUMBER,
        "topology": Field(
            Struct(
                dict.fromkeys(
                    ("threads_per_core", "cores_per_die", "dies_per_package", "packages"), _NEEDED_NUMBER
                )
            )
        ),
        "kvm_hyperv": _OFF,
        "max_phys_bits": _default(_NUMBER, 46),
        "affinity": Field(
            Many(Struct({"vcpu": _NEEDED_NUMBER, "host_cpus": Field(Many(_NUMBER), required=True)}))
        ),
        "features": _empty(Struct({"amx": _OFF})),
        "nested": _ON,
        "core_scheduling": _choice("Vm", "Vcpu", "Off"),
        "profile": _choice("Host"),
    }
)
_ZONE = Struct(
    {
        "id": _NEEDED_TEXT,
        "size": _NEEDED_NUMBER,
        "file": Field(_PATH),
        "shared": _OFF,
        "hugepages": _OFF,
        "hugepage_size": Field(_NUMBER),
        "host_numa_node": Field(_NUMBER),
        "hotplug_size": Field(_NUMBER),
        "hotplugged_size": Field(_NUMBER),
        "prefault": _OFF,
        "reserve": _OFF,
        "mergeable": _OFF,
    }
)
_MEMORY = Struct(
    {
        "size": _NEEDED_NUMBER,
        "mergeable": _OFF,
        "hotplug_method": _choice("Acpi", "VirtioMem"),
        "hotplug_size": Field(_NUMBER),
        "hotplugged_size": Field(_NUMBER),
        "shared": _OFF,
        "hugepages": _OFF,
        "hugepage_size": Field(_NUMBER),
        "prefault": _OFF,
        "reserve": _OFF,
        "zones": Field(Many(_ZONE)),
        "thp": _ON,
    }
)
_DISK = Struct(
    {
        **_PCI,
        "path": Field(_PATH),
        "readonly": _OFF,
        "direct": _OFF,
        "num_queues": _default(_NUMBER, 1),
        "queue_size": _default(_NUMBER, 128),
        "vhost_user": _OFF,
        "vhost_socket": Field(_TEXT),
        "rate_limit_group": Field(_TEXT),
        "rate_limiter_config": Field(_LIMITER),
        "disable_io_uring": _OFF,
        "disable_aio": _OFF,
        "serial": Field(_TEXT),
        "queue_affinity": Field(
            Many(Struct({"queue_index": _NEEDED_NUMBER, "host_cpus": Field(Many(_NUMBER), required=True)}))
        ),
        "backing_files": _OFF,
        "sparse": _ON,
        "image_type": _choice("Unknown", "FixedVhd", "Qcow2", "Raw", "Vhdx"),
        "lock_granularity": _choice("ByteRange", "Full"),
    }
)
NET = Struct(
    {
        **_PCI,
        "tap": Field(_TEXT),
        "ip": Field(_TEXT),
        "mask": Field(_TEXT),
        "mac": Field(_TEXT, random_mac),
        "host_mac": Field(_TEXT),
        "mtu": Field(_NUMBER),
        "num_queues": _default(_NUMBER, 2),
        "queue_size": _default(_NUMBER, 256),
        "vhost_user": _OFF,
        "vhost_socket": Field(_TEXT),
        "vhost_mode": _choice("Client", "Server"),
        "fds": Field(Many(_NUMBER)),
        "rate_limiter_config": Field(_LIMITER),
        "offload_tso": _ON,
        "offload_ufo": _ON,
        "offload_csum": _ON,
    }
)
_PLATFORM = Struct(
    {
        "num_pci_segments": _default(_NUMBER, 1),
        "iommu_segments": Field(Many(_NUMBER)),
        "iommu_address_width_bits": _default(_NUMBER, 64),
        "system_serial_number": Field(_TEXT, alias="serial_number"),
        "system_uuid": Field(_TEXT, alias="uuid"),
        "oem_strings": Field(Many(_TEXT)),
        **dict.fromkeys(
            (
                "system_manufacturer",
                "system_product_name",
                "system_version",
                "system_family",
                "system_sku_number",
                "chassis_asset_tag",
            ),
            Field(_TEXT),
        ),
        "iommufd": _OFF,
        "vfio_p2p_dma": _ON,
    }
)
_NUMA = Struct(
    {
        "guest_numa_id": _NEEDED_NUMBER,
        "cpus": Field(Many(_NUMBER)),
        "distances": Field(
            Many(Struct({"destination": _default(_NUMBER, 0), "distance": _default(_NUMBER, 0)}))
        ),
        "memory_zones": Field(Many(_TEXT)),
        "pci_segments": Field(Many(_NUMBER)),
        "device_id": Field(_TEXT),
    }
)
VM_CONFIG = Struct(
    {
        "cpus": Field(_CPUS, lambda: fill(_CPUS, {"boot_vcpus": 1, "max_vcpus": 1})),
        "memory": Field(_MEMORY, lambda: fill(_MEMORY, {"size": 512 << 20})),
        "payload": Field(
            Struct(
                {
                    "firmware": Field(_PATH),
                    "kernel": Field(_PATH),
                    "cmdline": Field(_TEXT),
                    "initramfs": Field(_PATH),
                }
            )
        ),
        "rate_limit_groups": Field(
            Many(Struct({"id": _default(_TEXT, ""), "rate_limiter_config": _empty(_LIMITER)}))
        ),
        "disks": Field(Many(_DISK)),
        "net": Field(Many(NET)),
        "rng": Field(
            Struct({**_PCI, "src": _NEEDED_PATH}), lambda: {"pci_segment": 0, "src": "/dev/urandom"}
        ),
        "balloon": Field(
            Struct({**_PCI, "size": _NEEDED_NUMBER, "deflate_on_oom": _OFF, "free_page_reporting": _OFF})
        ),
        "generic_vhost_user": Field(
            Many(
                Struct(
                    {
                        **_PCI,
                        "socket": _NEEDED_PATH,
                        "queue_sizes": Field(Many(_NUMBER), required=True),
                        "device_type": _NEEDED_NUMBER,
                    }
                )
            )
        ),
        "fs": Field(
            Many(
                Struct(
                    {
                        **_PCI,
                        "tag": _NEEDED_TEXT,
                        "socket": _NEEDED_PATH,
                        "num_queues": _default(_NUMBER, 1),
                        "queue_size": _default(_NUMBER, 1024),
                    }
                )
            )
        ),
        "pmem": Field(
            Many(Struct({**_PCI, "file": _NEEDED_PATH, "size": Field(_NUMBER), "discard_writes": _OFF}))
        ),
        "serial": Field(Struct(_CONSOLE), lambda: {"mode": "Null"}),
        "console": Field(Struct({**_CONSOLE, **_PCI}), lambda: {"mode": "Tty", "pci_segment": 0}),
        "debug_console": Field(
            Struct({"file": Field(_PATH), "mode": _CONSOLE_MODE, "iobase": Field(_NUMBER)}),
            lambda: {"mode": "Off", "iobase": 0xE9},
        ),
        "devices": Field(
            Many(
                Struct(
                    {
                        **_PCI,
                        "path": Field(_PATH),
                        "x_nv_gpudirect_clique": Field(_NUMBER),
                        "x_exclude_mmap_bars": Field(Many(_NUMBER), list),
                    }
                )
            )
        ),
        "user_devices": Field(Many(Struct({**_PCI, "socket": _NEEDED_PATH}))),
        "vdpa": Field(Many(Struct({**_PCI, "path": _NEEDED_PATH, "num_queues": _default(_NUMBER, 1)}))),
        "vsock": Field(Struct({**_PCI, "cid": _NEEDED_NUMBER, "socket": _NEEDED_PATH})),
        "pvpanic": _OFF,
        "iommu": _OFF,
        "numa": Field(Many(_NUMA)),
        "watchdog": _OFF,
        "rtc": Field(Struct(_PCI)),
        "pci_segments": Field(
            Many(
                Struct(
                    {
                        "pci_segment": _default(_NUMBER, 0),
                        "mmio32_aperture_weight": _default(_NUMBER, 1),
                        "mmio64_aperture_weight": _default(_NUMBER, 1),
                    }
                )
            )
        ),
        "platform": Field(_PLATFORM),
        "tpm": Field(Struct({"socket": _NEEDED_PATH})),
        "landlock_enable": _OFF,
        "landlock_rules": Field(Many(Struct({"path": _NEEDED_PATH, "access": _NEEDED_TEXT}))),
    }
)


def complete(document: Any) -> Json:  # noqa: ANN401 (whatever JSON a client sends)
    """A ``vm.create`` document with every default in place, and no descriptors. Raises `SchemaError`."""
    filled: Json = fill(VM_CONFIG, document)
    for net in filled.get("net", ()):
        net.pop("fds", None)
    return filled


def complete_net(document: Any, descriptors: Iterable[int] = ()) -> Json:  # noqa: ANN401 (whatever JSON)
    """A ``vm.add-net`` document likewise; numbers in it are dropped, only what came by SCM_RIGHTS counts."""
    filled: Json = fill(NET, document)
    filled.pop("fds", None)
    return attach(filled, list(descriptors))


def attach(net: Json, descriptors: list[int]) -> Json:
    """A network device with its descriptors, which ``vm.info`` shows among its other fields."""
    if not descriptors:
        return net
    whole = {**net, "fds": descriptors}
    return {name: whole[name] for name in NET.fields if name in whole}
