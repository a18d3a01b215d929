# SPDX-License-Identifier: MIT
"""Tables of the releases of cloud-hypervisor that take an option, and of options that the API does not take.

Source: the parsers in cloud-hypervisor vmm/src/config.rs and cloud-hypervisor/src/main.rs, compared for the
tags v46.0 to v53.0 and main of 2026-08. The tables' keys are pairs of an option and one of its keys; ``""``
means the option itself.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final


OLDEST: Final = 46
"""The oldest release whose JSON interface was compared with its command line."""

LISTS_REPEAT_SINCE: Final = 52
"""The first release whose list options may be repeated (`ArgAction::Append`)."""

SINCE: Final[dict[tuple[str, str], int]] = {
    ("cpus", "nested"): 50,
    ("cpus", "core_scheduling"): 52,
    ("cpus", "profile"): 53,
    ("memory", "reserve"): 53,
    ("memory-zone", "reserve"): 53,
    ("memory-zone", "mergeable"): 52,
    ("platform", "iommufd"): 52,
    ("platform", "vfio_p2p_dma"): 52,
    **{
        ("platform", key): 53
        for key in (
            "system_manufacturer",
            "system_product_name",
            "system_version",
            "system_serial_number",
            "system_uuid",
            "system_sku_number",
            "system_family",
            "chassis_asset_tag",
        )
    },
    ("disk", "backing_files"): 51,
    ("disk", "sparse"): 51,
    ("disk", "image_type"): 51,
    ("disk", "lock_granularity"): 52,
    ("device", "x_exclude_mmap_bars"): 52,
    ("numa", "device_id"): 51,
    ("balloon", "iommu"): 53,
    ("balloon", "id"): 53,
    ("balloon", "pci_segment"): 53,
    ("balloon", "pci_device_id"): 53,
    ("rtc", ""): 53,
    ("generic-vhost-user", ""): 52,
    ("generic-vhost-user", "device_type"): 53,
    ("log-format", ""): 52,
    ("no-shutdown", ""): 52,
    **{
        (option, "pci_device_id"): 52
        for option in (
            "disk",
            "net",
            "fs",
            "pmem",
            "vsock",
            "device",
            "user-device",
            "vdpa",
            "rng",
            "console",
        )
    },
    ("rng", "id"): 52,
    ("console", "id"): 52,
    ("rng", "pci_segment"): 52,
    ("console", "pci_segment"): 52,
}
"""The first release that takes an option's key (``""``: the option itself). Other keys are older."""

LAST: Final[dict[tuple[str, str], int]] = {("sgx-epc", ""): 47, ("numa", "sgx_epc_sections"): 47}
"""The last release that takes an option's key (``""``: the option itself)."""

_BUILT_IN: Final = "the API silently ignores it if cloud-hypervisor was built without it"
REFUSED: Final[dict[tuple[str, str], str]] = {
    ("restore", ""): "a snapshot contains old credentials",
    ("gdb", ""): "a debugger can read the guest's credentials",
    ("fw-cfg-config", ""): _BUILT_IN,
    ("host-data", ""): _BUILT_IN,
    ("igvm", ""): _BUILT_IN,
    ("ivshmem", ""): _BUILT_IN,
    ("pvmemcontrol", ""): _BUILT_IN,
    ("platform", "tdx"): _BUILT_IN,
    ("platform", "sev_snp"): _BUILT_IN,
    ("platform", "iommufd_fd"): "cloud-hypervisor loses descriptors in vm.create",
    ("device", "fd"): "cloud-hypervisor loses descriptors in vm.create",
}
"""Options and keys that the launcher does not send through the API, and why."""
