# SPDX-License-Identifier: MIT
"""Tables of cloud-hypervisor's options: the keys of each option, their names in JSON, their converters.

Source: the parsers in cloud-hypervisor vmm/src/config.rs and the structs in vmm/src/vm_config.rs, compared
for the tags v46.0 to v53.0 and main of 2026-08.

One job: tables that are compared with cloud-hypervisor's source, side by side.
"""

from __future__ import annotations

from credferry.launcher.hypervisor.values import (
    choice,
    cpu_features,
    exact_choice,
    integers,
    io_port,
    pairs,
    size,
    strings,
    text,
    toggle,
    topology,
    uint,
    virtio_type,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from credferry.launcher.hypervisor.values import Converter, Json

    Keys = dict[str, tuple[str, Converter]]

_ID: Final[Keys] = {"id": ("id", text), "pci_segment": ("pci_segment", uint)}
_PCI: Final[Keys] = {**_ID, "pci_device_id": ("pci_device_id", uint)}
_PCI_IOMMU: Final[Keys] = {**_PCI, "iommu": ("iommu", toggle)}
_BUCKETS: Final[Keys] = {
    f"{kind}_{part}": (f"{kind}_{part}", uint)
    for kind in ("bw", "ops")
    for part in ("size", "one_time_burst", "refill_time")
}
_QUEUES: Final[Keys] = {"num_queues": ("num_queues", uint), "queue_size": ("queue_size", uint)}
_VHOST: Final[Keys] = {"vhost_user": ("vhost_user", toggle), "socket": ("vhost_socket", text)}
_BACKING: Final[Keys] = {
    "size": ("size", size),
    "shared": ("shared", toggle),
    "hugepages": ("hugepages", toggle),
    "hugepage_size": ("hugepage_size", size),
    "hotplug_size": ("hotplug_size", size),
    "hotplugged_size": ("hotplugged_size", size),
    "mergeable": ("mergeable", toggle),
    "prefault": ("prefault", toggle),
    "reserve": ("reserve", toggle),
}

IGNORED: Final = ""
"""The JSON name of a key that the command line's parser accepts and ignores."""

OPTIONS: Final[dict[str, Keys]] = {
    "cpus": {
        "boot": ("boot_vcpus", uint),
        "max": ("max_vcpus", uint),
        "topology": ("topology", topology),
        "kvm_hyperv": ("kvm_hyperv", toggle),
        "max_phys_bits": ("max_phys_bits", uint),
        "affinity": ("affinity", pairs("vcpu", "host_cpus", many=True)),
        "features": ("features", cpu_features),
        "nested": ("nested", toggle),
        "core_scheduling": ("core_scheduling", choice(vm="Vm", vcpu="Vcpu", off="Off")),
        "profile": ("profile", text),
    },
    "memory": {
        **_BACKING,
        "thp": ("thp", toggle),
        "file": (IGNORED, text),
        "hotplug_method": ("hotplug_method", choice(acpi="Acpi", virtio_mem="VirtioMem")),
    },
    "memory-zone": {
        **_BACKING,
        "id": ("id", text),
        "file": ("file", text),
        "host_numa_node": ("host_numa_node", uint),
    },
    "platform": {
        "num_pci_segments": ("num_pci_segments", uint),
        "iommu_segments": ("iommu_segments", integers),
        "iommu_address_width": ("iommu_address_width_bits", uint),
        "serial_number": ("serial_number", text),
        "uuid": ("uuid", text),
        "oem_strings": ("oem_strings", strings),
        "iommufd": ("iommufd", toggle),
        "vfio_p2p_dma": ("vfio_p2p_dma", toggle),
        "system_manufacturer": ("system_manufacturer", text),
        "system_product_name": ("system_product_name", text),
        "system_version": ("system_version", text),
        "system_serial_number": ("system_serial_number", text),
        "system_uuid": ("system_uuid", text),
        "system_sku_number": ("system_sku_number", text),
        "system_family": ("system_family", text),
        "chassis_asset_tag": ("chassis_asset_tag", text),
    },
    "disk": {
        **_PCI_IOMMU,
        **_QUEUES,
        **_VHOST,
        **_BUCKETS,
        "path": ("path", text),
        "readonly": ("readonly", toggle),
        "direct": ("direct", toggle),
        "_disable_io_uring": ("disable_io_uring", toggle),
        "_disable_aio": ("disable_aio", toggle),
        "serial": ("serial", text),
        "rate_limit_group": ("rate_limit_group", text),
        "queue_affinity": ("queue_affinity", pairs("queue_index", "host_cpus", many=True)),
        "backing_files": ("backing_files", toggle),
        "sparse": ("sparse", toggle),
        "image_type": ("image_type", choice(raw="Raw", qcow2="Qcow2", vhd="FixedVhd", vhdx="Vhdx")),
        "lock_granularity": ("lock_granularity", exact_choice(byte_range="ByteRange", full="Full")),
    },
    "net": {
        **_PCI_IOMMU,
        **_QUEUES,
        **_VHOST,
        **_BUCKETS,
        "tap": ("tap", text),
        "ip": ("ip", text),
        "mask": ("mask", text),
        "mac": ("mac", text),
        "host_mac": ("host_mac", text),
        "mtu": ("mtu", uint),
        "vhost_mode": ("vhost_mode", choice(client="Client", server="Server")),
        "fd": ("fds", integers),
        "offload_tso": ("offload_tso", toggle),
        "offload_ufo": ("offload_ufo", toggle),
        "offload_csum": ("offload_csum", toggle),
    },
    "generic-vhost-user": {
        **_PCI,
        "socket": ("socket", text),
        "queue_sizes": ("queue_sizes", integers),
        "device_type": ("device_type", virtio_type),
        "virtio_id": ("virtio_id", virtio_type),
    },
    "fs": {**_PCI, **_QUEUES, "tag": ("tag", text), "socket": ("socket", text)},
    "pmem": {
        **_PCI_IOMMU,
        "file": ("file", text),
        "size": ("size", size),
        "discard_writes": ("discard_writes", toggle),
    },
    "vsock": {**_PCI_IOMMU, "cid": ("cid", uint), "socket": ("socket", text)},
    "balloon": {
        **_PCI_IOMMU,
        "size": ("size", size),
        "deflate_on_oom": ("deflate_on_oom", toggle),
        "free_page_reporting": ("free_page_reporting", toggle),
    },
    "device": {
        **_PCI_IOMMU,
        "path": ("path", text),
        "x_nv_gpudirect_clique": ("x_nv_gpudirect_clique", uint),
        "x_exclude_mmap_bars": ("x_exclude_mmap_bars", integers),
    },
    "user-device": {**_PCI, "socket": ("socket", text)},
    "vdpa": {**_PCI_IOMMU, "path": ("path", text), "num_queues": ("num_queues", uint)},
    "rng": {**_PCI_IOMMU, "src": ("src", text)},
    "rtc": {**_PCI_IOMMU},
    "tpm": {"socket": ("socket", text)},
    "numa": {
        "guest_numa_id": ("guest_numa_id", uint),
        "cpus": ("cpus", integers),
        "distances": ("distances", pairs("destination", "distance", many=False)),
        "memory_zones": ("memory_zones", strings),
        "sgx_epc_sections": ("sgx_epc_sections", strings),
        "pci_segments": ("pci_segments", integers),
        "device_id": ("device_id", text),
    },
    "pci-segment": {
        "pci_segment": ("pci_segment", uint),
        "mmio32_aperture_weight": ("mmio32_aperture_weight", uint),
        "mmio64_aperture_weight": ("mmio64_aperture_weight", uint),
    },
    "sgx-epc": {"id": ("id", text), "size": ("size", size), "prefault": ("prefault", toggle)},
    "rate-limit-group": {**_BUCKETS, "id": ("id", text)},
    "landlock-rules": {"path": ("path", text), "access": ("access", text)},
    "console": {**_PCI_IOMMU, "file": ("file", text), "socket": ("socket", text)},
    "serial": {"file": ("file", text), "socket": ("socket", text)},
    "debug-console": {"file": ("file", text), "iobase": ("iobase", io_port)},
}

MODES: Final = {"off": "Off", "pty": "Pty", "tty": "Tty", "null": "Null", "file": "File", "socket": "Socket"}
"""Modes of consoles, in the order in which the parser looks for them."""
PATHS: Final = frozenset({"file", "socket"})
"""Modes that are keys with a path."""

FORCED: Final[dict[str, dict[str, Json]]] = {
    "cpus": {"boot_vcpus": 1},
    "memory": {"size": 512 << 20},
    "memory-zone": {"size": 512 << 20},
    "balloon": {"size": 0},
    "rng": {"src": "/dev/urandom"},
}
"""Defaults of the command line's parser for keys that JSON requires."""

REQUIRED: Final[dict[str, tuple[str, ...]]] = {
    "memory-zone": ("id",),
    "fs": ("tag", "socket"),
    "pmem": ("file",),
    "vsock": ("cid", "socket"),
    "device": ("path",),
    "user-device": ("socket",),
    "vdpa": ("path",),
    "tpm": ("socket",),
    "numa": ("guest_numa_id",),
    "rate-limit-group": ("id",),
    "generic-vhost-user": ("socket", "queue_sizes", "device_type"),
    "sgx-epc": ("id",),
    "landlock-rules": ("path", "access"),
}

SECTIONS: Final = {
    "cpus": "cpus",
    "memory": "memory",
    "platform": "platform",
    "vsock": "vsock",
    "balloon": "balloon",
    "rng": "rng",
    "rtc": "rtc",
    "tpm": "tpm",
    "console": "console",
    "serial": "serial",
    "debug-console": "debug_console",
}
"""Options that make one object, and its name in the document."""

LISTS: Final = {
    "disk": "disks",
    "net": "net",
    "generic-vhost-user": "generic_vhost_user",
    "fs": "fs",
    "pmem": "pmem",
    "device": "devices",
    "user-device": "user_devices",
    "vdpa": "vdpa",
    "numa": "numa",
    "pci-segment": "pci_segments",
    "rate-limit-group": "rate_limit_groups",
    "sgx-epc": "sgx_epc",
    "landlock-rules": "landlock_rules",
}
"""Options that make a list of objects, and its name in the document."""

SWITCHES: Final = {"watchdog": "watchdog", "pvpanic": "pvpanic", "landlock": "landlock_enable"}
PAYLOAD: Final = ("firmware", "kernel", "initramfs", "cmdline")
VMM_OWNED: Final = frozenset(
    {
        "api-socket",
        "dbus-object-path",
        "dbus-service-name",
        "dbus-system-bus",
        "event-monitor",
        "log-file",
        "log-format",
        "no-shutdown",
        "seccomp",
    }
)
"""Options that stay on cloud-hypervisor's command line when it starts without a VM."""
