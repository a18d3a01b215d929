# SPDX-License-Identifier: MIT
"""Converts one option's value to its object in the ``vm.create`` document.

This module refuses what cloud-hypervisor's own parser would refuse, as ``vm.create`` ignores unknown keys.
Refusals name option and key, and never a value.
"""

from __future__ import annotations

from credferry.launcher.errors import usage
from credferry.launcher.hypervisor import releases, schema
from credferry.launcher.hypervisor.options import Grammar, OptionError, oem_strings, words

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final

    Object = dict[str, Any]

WAY_OUT: Final = (
    "remove it; or seal the values for the guest and use the command channel, which passes on every option"
)
_AS_WANTED: Final = "write it in cloud-hypervisor's syntax"
_SYSTEM_NAMES: Final = {"uuid": "system_uuid", "serial_number": "system_serial_number"}
_SYSTEM_NAMES_SINCE: Final = 53
_NUMA_ID_REQUIRED_SINCE: Final = 51
_CONSOLES: Final = frozenset({"console", "serial", "debug-console"})
_KEY: Final = frozenset("abcdefghijklmnopqrstuvwxyz0123456789_")
_KEY_MAX: Final = 32


def build(name: str, value: str, major: int) -> Object:
    """The object for one value of option `name` in this major version. Raises `LaunchError` (USAGE)."""
    check_known(name, "", major)
    grammar = Grammar.of(major)
    try:
        found = words(value, grammar)
        if name == "platform":
            oem_strings(value, grammar)
    except OptionError as error:
        raise usage(f"--{name} cannot be read: {error}", _AS_WANTED) from None
    known = _modes(name)
    modes = {key for key, _ in found if key in known}
    last = {
        key: _checked(name, key, raw, major)
        for key, raw in found
        if key not in modes or key in schema.OPTIONS[name]
    }
    entry: Object = {}
    for key, text in last.items():
        _set(entry, name, key, text, major)
    for key, forced in schema.FORCED.get(name, {}).items():
        entry.setdefault(key, forced)
    if name in _CONSOLES:
        _console(name, entry, modes)
    if name in _COMPLETE:
        _COMPLETE[name](entry, major)
    for key in schema.REQUIRED.get(name, ()):
        if key not in entry:
            raise usage(f"--{name}: {key} is missing", "cloud-hypervisor requires this key")
    return entry


def check_known(name: str, key: str, major: int) -> None:
    """Refuse an option or key that this cloud-hypervisor's release or its API does not take."""
    what = f"--{name}: {key}" if key else f"--{name}"
    if (name, key) in releases.REFUSED:
        raise usage(f"{what} does not go through the API: {releases.REFUSED[name, key]}", WAY_OUT)
    since = releases.SINCE.get((name, key), 0)
    if major < since:
        raise usage(
            f"{what} is not known to cloud-hypervisor {major}", f"use cloud-hypervisor {since} or later"
        )
    last = releases.LAST.get((name, key), major)
    if major > last:
        raise usage(
            f"{what} is not known to cloud-hypervisor {major}",
            f"remove it: {last} was the last version with it",
        )


def _modes(name: str) -> set[str]:
    """Words of a console's modes. A mode with a path is one only where the console takes that path."""
    if name not in _CONSOLES:
        return set()
    return {mode for mode in schema.MODES if mode not in schema.PATHS or mode in schema.OPTIONS[name]}


def _checked(name: str, key: str, raw: str | None, major: int) -> str:
    """The text of a key's value, if the release takes the key. Raises `LaunchError` (USAGE)."""
    check_known(name, key, major)
    if key not in schema.OPTIONS[name]:
        # After a misplaced comma, what looks like a key of --platform may be a part of a secret.
        named = raw is not None and name != "platform" and 0 < len(key) <= _KEY_MAX and _KEY.issuperset(key)
        shown = f" {key}" if named else ""
        raise usage(f"--{name} has a key{shown} that is not known to the api channel", WAY_OUT)
    if raw is None:
        raise usage(f"--{name}: {key} has no value", "give it one")
    return raw


def _set(entry: Object, name: str, key: str, raw: str, major: int) -> None:
    """Convert a key's last value. The parser never reads the values that a later one replaces."""
    json_name, convert = schema.OPTIONS[name][key]
    if not raw or json_name == schema.IGNORED:
        return
    try:
        entry[json_name] = convert(raw, Grammar.of(major))
    except ValueError:
        raise usage(f"--{name}: the value of {key} cannot be read", _AS_WANTED) from None


def _console(name: str, entry: Object, modes: set[str]) -> None:
    mode = next((mode for mode in schema.MODES if mode in modes), None)
    if mode is None:
        raise usage(f"--{name} has no mode", "write off, pty, tty, null, file=… or socket=…")
    for path in schema.PATHS - {mode}:
        entry.pop(path, None)
    if mode in schema.PATHS and mode not in entry:
        raise usage(f"--{name}: {mode} has no value", "give it a path")
    entry["mode"] = schema.MODES[mode]


def _cpus(entry: Object, _major: int) -> None:
    entry.setdefault("max_vcpus", entry["boot_vcpus"])


def _platform(entry: Object, major: int) -> None:
    if major >= _SYSTEM_NAMES_SINCE:
        for old in _SYSTEM_NAMES.keys() & entry.keys():
            value = entry.pop(old)
            entry.setdefault(_SYSTEM_NAMES[old], value)


def _numa(entry: Object, major: int) -> None:
    if major < _NUMA_ID_REQUIRED_SINCE:
        entry.setdefault("guest_numa_id", 0)
    if "device_id" in entry and ("cpus" in entry or "memory_zones" in entry):
        raise usage(
            "--numa: device_id cannot be combined with cpus or memory_zones",
            "give a node either device_id, or cpus and memory_zones",
        )


def _generic_vhost_user(entry: Object, _major: int) -> None:
    older = entry.pop("virtio_id", None)
    if older is not None:
        entry.setdefault("device_type", older)


def _disk(entry: Object, major: int) -> None:
    _buckets(entry, major)
    if "vhost_socket" in entry:
        entry.pop("image_type", None)


def _buckets(entry: Object, _major: int) -> None:
    """Token buckets. cloud-hypervisor ignores one without size or refill time (`DiskConfig::parse`)."""
    config: Object = {}
    for kind, json_name in (("bw", "bandwidth"), ("ops", "ops")):
        size, burst, refill = (
            entry.pop(f"{kind}_{part}", 0) for part in ("size", "one_time_burst", "refill_time")
        )
        if size and refill:
            config[json_name] = {"size": size, "one_time_burst": burst, "refill_time": refill}
    if config:
        entry["rate_limiter_config"] = config


def _group(entry: Object, major: int) -> None:
    _buckets(entry, major)
    if "rate_limiter_config" not in entry:
        raise usage("--rate-limit-group limits nothing", "give size and refill time, or remove it")


_COMPLETE: Final[dict[str, Callable[[Object, int], None]]] = {
    "cpus": _cpus,
    "platform": _platform,
    "generic-vhost-user": _generic_vhost_user,
    "numa": _numa,
    "disk": _disk,
    "net": _buckets,
    "rate-limit-group": _group,
}
