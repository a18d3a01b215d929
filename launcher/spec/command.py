# SPDX-License-Identifier: MIT
"""Converts a spec to cloud-hypervisor's arguments, in the order and the form that microvm.nix uses."""

from __future__ import annotations

from credferry.launcher.errors import usage
from credferry.launcher.hypervisor import schema
from credferry.launcher.hypervisor.options import (
    OEM_STRINGS,
    Grammar,
    OptionError,
    merge_oem_strings,
    render,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import Final

    from credferry.launcher.spec.model import Spec, Table

NOTIFY: Final = "io.systemd.credential:vmm.notify_socket=vsock-stream:2:8888"
"""Tells the guest's systemd where to report that it is up. microvm.nix uses the same string."""


def arguments(spec: Spec, grammar: Grammar) -> list[str]:
    """cloud-hypervisor's arguments, as microvm.nix would give them. Raises `LaunchError` (USAGE)."""
    tables = spec.tables
    words = ["--cpus", _option("cpus", tables["cpus"], grammar)]
    if tables.get("watchdog"):
        words.append("--watchdog")
    for key, option in (
        ("firmware", "firmware"),
        ("kernel", "kernel"),
        ("initrd", "initramfs"),
        ("cmdline", "cmdline"),
    ):
        if key in tables:
            words.append(f"--{option}={tables[key]}")
    words += ["--memory", _option("memory", tables["memory"], grammar)]
    words += ["--platform", _platform(spec, grammar)]
    words += [f"--console={tables.get('console', 'null')}", f"--serial={tables.get('serial', 'tty')}"]
    if "vsock" in tables:
        words += ["--vsock", _option("vsock", tables["vsock"], grammar)]
    words += _list("disk", tables.get("disks", ()), grammar)
    words += _list("fs", tables.get("shares", ()), grammar)
    words += ["--api-socket", spec.api_socket]
    words += _list("net", tables.get("networks", ()), grammar)
    words += _list("device", tables.get("devices", ()), grammar)
    return [*words, *tables.get("options", ())]


def _list(option: str, tables: Collection[Table], grammar: Grammar) -> list[str]:
    return [f"--{option}", *(_option(option, table, grammar) for table in tables)] if tables else []


def _platform(spec: Spec, grammar: Grammar) -> str:
    table = dict(spec.tables.get("platform", {}))
    strings = [*table.pop(OEM_STRINGS, ()), *([NOTIFY] if spec.notify_socket else ())]
    rest = _option("platform", table, grammar)
    if not strings:
        return rest
    try:
        return merge_oem_strings(rest, strings, grammar)
    except OptionError as error:
        raise usage(
            f"platform.{OEM_STRINGS} of the spec: {error}", "write these strings in another way"
        ) from None


def _option(option: str, table: Table, grammar: Grammar) -> str:
    try:
        return render(
            {key: _text(value) for key, value in table.items() if key in schema.OPTIONS[option]}, grammar
        )
    except OptionError as error:
        raise usage(
            f"a value of the spec for --{option} cannot be passed on: {error}", "change this value"
        ) from None


def _text(value: object) -> str:
    match value:
        case bool():
            return "on" if value else "off"
        case list():
            return f"[{','.join(str(each) for each in value)}]"
        case _:
            return str(value)
