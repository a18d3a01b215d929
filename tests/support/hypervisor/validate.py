# SPDX-License-Identifier: MIT
"""What cloud-hypervisor checks before it boots (vmm/src/config.rs, VmConfig::validate): the common part."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .schema import Json

_WITH_IOMMU = ("disks", "net", "pmem", "devices", "vdpa", "fs", "user_devices", "generic_vhost_user")
_SINGLE_WITH_IOMMU = ("rng", "balloon", "vsock", "console", "rtc")


class ValidationError(Exception):
    """A configuration that cannot be booted; each argument is one link of the error's chain."""


def validate(config: Json) -> None:
    """Refuse what the real one refuses, and set ``iommu`` as it does. Raises `ValidationError`."""
    payload = config.get("payload") or {}
    if "kernel" not in payload and "firmware" not in payload:
        raise ValidationError(
            "Payload configuration is not bootable", "No bootitem provided: neither firmware nor kernel"
        )
    if "firmware" in payload and len(payload) > 1:
        raise ValidationError(
            "Payload configuration is not bootable",
            "Specifying a kernel is not supported when a firmware is provided",
        )
    cpus, memory = config["cpus"], config["memory"]
    if cpus["max_vcpus"] < cpus["boot_vcpus"]:
        raise ValidationError(f"Max CPUs ({cpus['max_vcpus']}) lower than boot CPUs ({cpus['boot_vcpus']})")
    for zone in [memory, *memory.get("zones", ())]:
        if zone["mergeable"] and zone["shared"]:
            raise ValidationError("Invalid to set both 'mergeable' and 'shared' for memory")
    vhost_user = [
        device for place in ("disks", "net") for device in config.get(place, ()) if device["vhost_user"]
    ]
    if (vhost_user or config.get("fs")) and not _is_shared(memory):
        raise ValidationError("Using vhost-user requires using shared memory or huge pages")
    for net in config.get("net", ()):
        fds = net.get("fds", ())
        if fds and net["num_queues"] != 2 * len(fds):
            raise ValidationError(
                f"Number of queues ({net['num_queues']}) to virtio_net does not match "
                f"the number of FDs ({2 * len(fds)})"
            )
    devices = [device for place in _WITH_IOMMU for device in config.get(place) or ()]
    devices += [config[place] for place in _SINGLE_WITH_IOMMU if config.get(place)]
    segments = (config.get("platform") or {}).get("iommu_segments")
    config["iommu"] |= segments is not None or any(device.get("iommu") for device in devices)


def _is_shared(memory: Json) -> bool:
    """Whether another process can map all of the guest's memory."""
    parts = memory.get("zones", ()) if memory["size"] == 0 else [memory]
    return all(part["shared"] or part["hugepages"] for part in parts)
