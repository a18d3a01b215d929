# SPDX-License-Identifier: MIT
"""A command line's options as the ``vm.create`` document that cloud-hypervisor's parser makes of them.

Keys and defaults are those of v53's vmm/src/config.rs. What the command line leaves out and JSON must say
(``max``, a memory size, a zone's ``mergeable``, …) is filled in here; all else is `vmconfig`'s.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from .clap import VM_OPTIONS, Takes
from .grammar import (
    Dialect,
    OptionError,
    Reader,
    choice,
    exact,
    number,
    numbers,
    size,
    strings,
    text,
    toggle,
    tuples,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .clap import Arguments
    from .grammar import Converter
    from .schema import Json

    Keys = Mapping[str, tuple[str, Converter]]

_DEFAULT_MEMORY = 512 << 20
_PORT_MAX = 0xFFFF
_FIRST_WITH_IMAGE_TYPE = 51
_FIRST_WITH_KEPT_QUOTES = 48


def _same(convert: Converter, names: str) -> Keys:
    return {name: (name, convert) for name in names.split()}


_PCI: Keys = {**_same(text, "id"), **_same(toggle, "iommu"), **_same(number, "pci_segment pci_device_id")}
_PCI_NO_IOMMU: Keys = {key: value for key, value in _PCI.items() if key != "iommu"}
_BUCKETS = {"bandwidth": "bw", "ops": "ops"}
_LIMITS: Keys = _same(
    number, "bw_size bw_one_time_burst bw_refill_time ops_size ops_one_time_burst ops_refill_time"
)
_MODES = {"off": "Off", "pty": "Pty", "tty": "Tty", "null": "Null"}
_IMAGE_TYPES = (("raw", "Raw"), ("qcow2", "Qcow2"), ("vhd", "FixedVhd"), ("vhdx", "Vhdx"))


def _topology(reader: Reader, raw: str) -> Json:
    values = [number(reader, part) for part in reader.plain(raw).split(":")]
    names = ("threads_per_core", "cores_per_die", "dies_per_package", "packages")
    return dict(zip(names, values, strict=True))


def _features(reader: Reader, raw: str) -> Json:
    for name in (names := reader.strings(raw)):
        if name != "amx":
            raise OptionError(f"invalid cpu features: {name}")
    return {"amx": "amx" in names}


def _io_port(reader: Reader, raw: str) -> int:
    zero, x, digits = reader.plain(raw).partition("x")
    if (
        (zero, x) != ("0", "x")
        or not re.fullmatch(r"\+?[0-9a-fA-F]+", digits)
        or int(digits, 16) > _PORT_MAX
    ):
        raise OptionError(f"The IO port was not properly provided in hex or a `0x` prefix is missing: {raw}")
    return int(digits, 16)


_MEMORY_SIZES = _same(size, "size hugepage_size hotplug_size hotplugged_size")
_MEMORY_TOGGLES = _same(toggle, "mergeable shared hugepages prefault reserve")
_KEYS: dict[str, Keys] = {
    "cpus": {
        "boot": ("boot_vcpus", number),
        "max": ("max_vcpus", number),
        "topology": ("topology", _topology),
        "features": ("features", _features),
        "affinity": ("affinity", tuples("vcpu", "host_cpus", many=True)),
        "core_scheduling": ("core_scheduling", choice(("vm", "Vm"), ("vcpu", "Vcpu"), ("off", "Off"))),
        "profile": ("profile", choice(("host", "Host"))),
        **_same(toggle, "kvm_hyperv nested"),
        **_same(number, "max_phys_bits"),
    },
    "memory": {
        **_MEMORY_SIZES,
        **_MEMORY_TOGGLES,
        **_same(toggle, "thp"),
        **_same(text, "file"),
        "hotplug_method": ("hotplug_method", choice(("acpi", "Acpi"), ("virtio-mem", "VirtioMem"))),
    },
    "memory-zone": {
        **_MEMORY_SIZES,
        **_MEMORY_TOGGLES,
        **_same(text, "id file"),
        **_same(number, "host_numa_node"),
    },
    "platform": {
        **_same(number, "num_pci_segments"),
        **_same(numbers, "iommu_segments"),
        "iommu_address_width": ("iommu_address_width_bits", number),
        **_same(
            text,
            "serial_number uuid system_manufacturer system_product_name system_version system_serial_number"
            " system_uuid system_sku_number system_family chassis_asset_tag",
        ),
        **_same(strings, "oem_strings"),
        **_same(toggle, "iommufd vfio_p2p_dma"),
        **_same(number, "iommufd_fd"),
    },
    "disk": {
        **_PCI,
        **_LIMITS,
        **_same(text, "path serial rate_limit_group"),
        **_same(toggle, "readonly direct vhost_user backing_files sparse"),
        **_same(number, "num_queues queue_size"),
        "socket": ("vhost_socket", text),
        "_disable_io_uring": ("disable_io_uring", toggle),
        "_disable_aio": ("disable_aio", toggle),
        "queue_affinity": ("queue_affinity", tuples("queue_index", "host_cpus", many=True)),
        "image_type": ("image_type", choice(*_IMAGE_TYPES)),
        "lock_granularity": ("lock_granularity", exact(("byte-range", "ByteRange"), ("full", "Full"))),
    },
    "net": {
        **_PCI,
        **_LIMITS,
        **_same(text, "tap ip mask mac host_mac"),
        **_same(toggle, "offload_tso offload_ufo offload_csum vhost_user"),
        **_same(number, "mtu num_queues queue_size"),
        "socket": ("vhost_socket", text),
        "vhost_mode": ("vhost_mode", choice(("client", "Client"), ("server", "Server"))),
        "fd": ("fds", numbers),
    },
    "rate-limit-group": {**_LIMITS, **_same(text, "id")},
    "rng": {**_PCI, **_same(text, "src")},
    "rtc": _PCI,
    "balloon": {**_PCI, **_same(size, "size"), **_same(toggle, "deflate_on_oom free_page_reporting")},
    "fs": {**_PCI_NO_IOMMU, **_same(text, "tag socket"), **_same(number, "num_queues queue_size")},
    "generic-vhost-user": {
        **_PCI_NO_IOMMU,
        **_same(text, "socket"),
        **_same(numbers, "queue_sizes"),
        "virtio_id": ("device_type", number),
        "device_type": ("device_type", number),
    },
    "pmem": {**_PCI, **_same(text, "file"), **_same(size, "size"), **_same(toggle, "discard_writes")},
    "serial": _same(text, "file socket"),
    "console": {**_PCI, **_same(text, "file socket")},
    "debug-console": {**_same(text, "file"), "iobase": ("iobase", _io_port)},
    "device": {
        **_PCI,
        **_same(text, "path"),
        **_same(number, "fd x_nv_gpudirect_clique"),
        **_same(numbers, "x_exclude_mmap_bars"),
    },
    "user-device": {**_PCI_NO_IOMMU, **_same(text, "socket")},
    "vdpa": {**_PCI, **_same(text, "path"), **_same(number, "num_queues")},
    "vsock": {**_PCI, **_same(text, "socket"), **_same(number, "cid")},
    "numa": {
        **_same(number, "guest_numa_id"),
        **_same(numbers, "cpus pci_segments"),
        **_same(strings, "memory_zones"),
        **_same(text, "device_id"),
        "distances": ("distances", tuples("destination", "distance", many=False)),
    },
    "pci-segment": _same(number, "pci_segment mmio32_aperture_weight mmio64_aperture_weight"),
    "tpm": _same(text, "socket"),
    "landlock-rules": _same(text, "path access"),
}
_PLACES = {
    "disk": "disks",
    "rate-limit-group": "rate_limit_groups",
    "generic-vhost-user": "generic_vhost_user",
    "debug-console": "debug_console",
    "device": "devices",
    "user-device": "user_devices",
    "pci-segment": "pci_segments",
    "landlock-rules": "landlock_rules",
}


def _limited(record: Json, *, whole: bool) -> Json:
    buckets = {}
    for field, prefix in _BUCKETS.items():
        values = [record.pop(f"{prefix}_{name}", 0) for name in ("size", "one_time_burst", "refill_time")]
        if values[0] and values[2]:
            buckets[field] = dict(zip(("size", "one_time_burst", "refill_time"), values, strict=True))
    if buckets or whole:
        record["rate_limiter_config"] = buckets
    return record


def _console(record: Json, given: Mapping[str, str]) -> Json:
    mode = next((_MODES[word] for word in _MODES if word in given), None)
    file, path = record.pop("file", None), record.pop("socket", None)
    if mode is not None:
        return {**record, "mode": mode}
    if file is not None:
        return {**record, "mode": "File", "file": file}
    if path is not None:
        return {**record, "mode": "Socket", "socket": path}
    raise OptionError("invalid console mode given")


_ADJUST: dict[str, Callable[[Json], Json]] = {
    "cpus": lambda record: {"boot_vcpus": 1, "max_vcpus": record.get("boot_vcpus", 1), **record},
    "memory": lambda record: {"size": _DEFAULT_MEMORY, **record},
    "memory-zone": lambda record: {"size": _DEFAULT_MEMORY, **record},
    "platform": lambda record: {"iommufd": "iommufd_fd" in record, **record},
    "disk": lambda record: _limited(record, whole=False),
    "net": lambda record: _limited(record, whole=False),
    "rate-limit-group": lambda record: _limited(record, whole=True),
    "rng": lambda record: {"src": "/dev/urandom", **record},
    "balloon": lambda record: {"size": 0, **record},
}


def reader_for(version: tuple[int, int]) -> Reader:
    """The grammar that a release speaks."""
    return Reader(Dialect.SINCE_V48 if version[0] >= _FIRST_WITH_KEPT_QUOTES else Dialect.UP_TO_V47)


def option(name: str, value: str, version: tuple[int, int]) -> Json:
    """One option's value as a record. Raises `OptionError`, which quotes the value as the real one does."""
    keys = _KEYS[name]
    if name == "disk" and version[0] < _FIRST_WITH_IMAGE_TYPE:
        keys = {key: field for key, field in keys.items() if key != "image_type"}
    reader = reader_for(version)
    flags = _MODES if name in {"serial", "console", "debug-console"} else ()
    record = reader.fields(value, keys, flags)
    if flags:
        return _console(record, reader.pairs(value, keys, flags))
    return _ADJUST.get(name, dict)(record)


def document(arguments: Arguments, version: tuple[int, int]) -> Json:
    """The ``vm.create`` document of a command line, with network devices' descriptors as ``fds``.

    Raises `OptionError` with the option's name as its second argument.
    """
    found: Json = {"payload": {}}
    for name in ("kernel", "firmware", "initramfs", "cmdline"):
        if name in arguments:
            found["payload"][name] = arguments.one(name)
    for flag in ("watchdog", "pvpanic"):
        found[flag] = flag in arguments
    found["landlock_enable"] = "landlock" in arguments
    for name in _KEYS:
        if name not in arguments:
            continue
        try:
            records = [option(name, value, version) for value in arguments.many(name)]
        except OptionError as error:
            raise OptionError(str(error), name) from None
        _place(found, name, records)
    return found


def _place(found: Json, name: str, records: list[Json]) -> None:
    if name == "memory-zone":
        memory = found.setdefault("memory", {"size": _DEFAULT_MEMORY})
        inherited = {"mergeable": memory.get("mergeable", False)}
        memory["zones"] = [{**inherited, **record} for record in records]
        return
    place = _PLACES.get(name, name)
    found[place] = records[0] if VM_OPTIONS[name] is not Takes.MANY else records
