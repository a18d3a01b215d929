# SPDX-License-Identifier: MIT
"""Reads and checks the spec of a VM, a TOML file for hosts without microvm.nix.

The launcher converts it to the arguments that microvm.nix would give. From there on, it handles both kinds
of VM alike. Tables hold cloud-hypervisor's own keys (schema.py) and a few more for the host's part. Paths
are relative to the working directory, as in cloud-hypervisor.

One job: a file's content becomes a checked `Spec`, or one error that names the key.
"""

from __future__ import annotations

import os

from credferry.launcher import trust
from credferry.launcher.errors import Exit, failed, usage
from credferry.launcher.handoff import GUEST_KEYS_PARENT, is_vm_name
from credferry.launcher.hypervisor import schema
from credferry.launcher.spec.model import GUEST_KEY_TAG, SHARES_DIRECTORY, Network, Share, Spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path
    from typing import Final

    from credferry.launcher.spec.model import Table

_DEFAULT_HYPERVISOR: Final = "/usr/bin/cloud-hypervisor"
_SIZE_MAX: Final = 1 << 20
_TEXTS: Final = frozenset(
    {
        "name",
        "hypervisor",
        "api_socket",
        "kernel",
        "initrd",
        "cmdline",
        "firmware",
        "serial",
        "console",
        "user",
    }
)
_TABLES: Final = {"vsock": "vsock", "platform": "platform"}
_LISTS: Final = {"disks": "disk", "shares": "fs", "networks": "net", "devices": "device"}
_GUEST_KEY: Final = "guest_key"
_KEYS: Final = (
    _TEXTS | {"cpus", "memory", "watchdog", "options", _GUEST_KEY} | _TABLES.keys() | _LISTS.keys()
)
_REQUIRED: Final = {
    "disks": ("path",),
    "shares": ("tag", "source"),
    "networks": ("tap", "mac"),
    "devices": ("path",),
}
_HEX_DIGITS: Final = 32
_OWN: Final = {
    "shares": frozenset({"source", "readonly"}),
    "networks": frozenset({"addresses"}),
    "vsock": frozenset({"notify"}),
}
"""Keys of the spec that cloud-hypervisor does not know."""
_TEXT, _LIST, _FLAG = "a text", "a list of texts", "true or false"
_TYPES: Final = {
    ("platform", "oem_strings"): _LIST,
    ("shares", "socket"): _TEXT,
    ("shares", "readonly"): _FLAG,
    ("vsock", "socket"): _TEXT,
    ("vsock", "notify"): _FLAG,
}
"""What the launcher itself uses, and not cloud-hypervisor alone."""


def load(path: Path) -> Spec:
    """Read and check a spec. Raises `LaunchError` (USAGE), whose text names file and key.

    Root reads only a file that no other user can change.
    """
    import tomllib  # noqa: PLC0415 (VMs of microvm.nix do not need it)

    try:
        with os.fdopen(trust.open_file(str(path)), "rb") as file:
            content = file.read(_SIZE_MAX)
        tables = tomllib.loads(content.decode())
    except OSError as error:
        raise failed(f"{path} cannot be read", error, hint="correct --spec", status=Exit.USAGE) from None
    except (ValueError, RecursionError) as error:
        # tomllib's errors quote at most one character of the file.
        raise usage(f"{path} is not TOML: {error}", "see https://toml.io/en/v1.0.0") from None
    return of_tables(tables, path)


def of_tables(tables: Table, path: Path) -> Spec:
    """The spec from a file's content; ``path`` is for messages. Raises `LaunchError` (USAGE)."""
    try:
        return _spec(tables)
    except _WrongError as wrong:
        raise usage(f"{path}: {wrong.key}", f"expected {wrong.expected}") from None


class _WrongError(Exception):
    """A key of the file with a wrong value, and the expected value."""

    def __init__(self, key: str, expected: str) -> None:
        super().__init__(key, expected)
        self.key = key
        self.expected = expected


def _spec(tables: Table) -> Spec:
    name = _name(tables)
    checked = {**tables, "cpus": _cpus(tables.get("cpus", 1)), "memory": _memory(tables.get("memory", 512))}
    for key, option in _TABLES.items():
        if key in tables:
            checked[key] = _table(key, tables[key], option)
    for key, option in _LISTS.items():
        checked[key] = _tables(key, tables.get(key, []), option)
    machine_id = _machine_id(tables.get(_GUEST_KEY))
    if machine_id is not None:
        _add_guest_key(checked, name, machine_id)
    _check_boot(checked)
    _check_devices(checked)
    _complete(checked, name)
    return Spec(
        name=name,
        hypervisor=tables.get("hypervisor", _DEFAULT_HYPERVISOR),
        api_socket=tables.get("api_socket", f"{name}.sock"),
        user=tables.get("user", "microvm"),
        machine_id=machine_id,
        shares=tuple(
            Share(each["tag"], each["source"], each["socket"], each.get("readonly", False))
            for each in checked["shares"]
        ),
        networks=tuple(
            Network(each["tap"], tuple(each.get("addresses", ())), each.get("num_queues", 2) // 2)
            for each in checked["networks"]
        ),
        tables=checked,
    )


def _name(tables: Table) -> str:
    for key in tables.keys() - _KEYS:
        raise _WrongError(key, f"one of {', '.join(sorted(_KEYS))}")
    for key in tables.keys() & _TEXTS:
        if not isinstance(tables[key], str) or not tables[key]:
            raise _WrongError(key, "a text")
    name: str = tables.get("name", "")
    if not is_vm_name(name):
        raise _WrongError("name", "the instance name of the VM's unit")
    return name


def _machine_id(table: object) -> str | None:
    """The guest's machine id as systemd writes it, or None without a table ``[guest_key]``."""
    if table is None:
        return None
    if not isinstance(table, dict) or table.keys() != {"machine_id"}:
        raise _WrongError(_GUEST_KEY, "a table with machine_id alone")
    digits = table["machine_id"].replace("-", "").lower() if isinstance(table["machine_id"], str) else ""
    if len(digits) != _HEX_DIGITS or set(digits) - set("0123456789abcdef") or not digits.strip("0"):
        raise _WrongError(f"{_GUEST_KEY}.machine_id", "32 hexadecimal digits that are not all zero")
    return digits


def _add_guest_key(tables: Table, name: str, machine_id: str) -> None:
    """Share the directory with the guest's key, and set the machine id that the key belongs to."""
    if any(share.get("tag") == GUEST_KEY_TAG for share in tables["shares"]):
        raise _WrongError("shares: tag", f"another tag than {GUEST_KEY_TAG}, which [guest_key] uses")
    source = f"/run/{GUEST_KEYS_PARENT}/{name}"
    tables["shares"].append({"tag": GUEST_KEY_TAG, "source": source, "readonly": True})
    if "kernel" in tables:  # firmware takes the kernel's command line from the guest's disk
        words = (tables.get("cmdline", ""), f"systemd.machine_id={machine_id}")
        tables["cmdline"] = " ".join(filter(None, words))


def _complete(tables: Table, name: str) -> None:
    """Fill in the defaults that microvm.nix would."""
    for share in tables["shares"]:
        share.setdefault("socket", f"{SHARES_DIRECTORY}/{name}/{share['tag']}.sock")
    if tables["shares"]:
        tables["memory"].setdefault("shared", True)
    if "vsock" in tables:
        tables["vsock"].setdefault("socket", "notify.vsock")
    cpus = tables["cpus"]["boot"]
    for network in tables["networks"]:
        if cpus > 1:
            network.setdefault("num_queues", 2 * cpus)


def _check_boot(tables: Table) -> None:
    if ("kernel" in tables) == ("firmware" in tables):
        raise _WrongError("kernel", "the path of a kernel, or else firmware")
    if not isinstance(tables.get("watchdog", False), bool):
        raise _WrongError("watchdog", "true or false")
    if not _is_texts(tables.get("options", [])):
        raise _WrongError("options", "a list of further arguments for cloud-hypervisor")
    if "vsock" in tables and not _is_number(tables["vsock"].get("cid")):
        raise _WrongError("vsock.cid", "a number, at least 3")


def _check_devices(tables: Table) -> None:
    for key, required in _REQUIRED.items():
        for number, table in enumerate(tables[key], start=1):
            for each in required:
                if not isinstance(table.get(each), str):
                    raise _WrongError(f"{key}, number {number}: {each}", "a text")
    for network in tables["networks"]:
        if not _is_texts(network.get("addresses", [])):
            raise _WrongError("networks: addresses", 'a list such as ["10.0.0.1/24"]')
        if not _is_number(network.get("num_queues", 2)):
            raise _WrongError("networks: num_queues", "a number")


def _cpus(value: object) -> Table:
    table = _table("cpus", {"boot": value} if _is_number(value) else value, "cpus")
    if not _is_number(table.setdefault("boot", 1)):
        raise _WrongError("cpus.boot", "a number")
    return table


def _memory(value: object) -> Table:
    if _is_number(value):
        value = f"{value}M"
    return _table("memory", {"size": value} if isinstance(value, str) else value, "memory")


def _tables(key: str, value: object, option: str) -> list[Table]:
    if not isinstance(value, list):
        raise _WrongError(key, f"a table [[{key}]] for each")
    return [_table(key, table, option) for table in value]


def _table(key: str, value: object, option: str) -> Table:
    if not isinstance(value, dict):
        raise _WrongError(key, "a table")
    known = schema.OPTIONS[option].keys() | _OWN.get(key, frozenset())
    for each, held in value.items():
        if each not in known:
            raise _WrongError(f"{key}.{each}", f"one of {', '.join(sorted(known))}")
        if not isinstance(held, str | int) and not (isinstance(held, list) and _is_flat(held)):
            raise _WrongError(
                f"{key}.{each}", "a text, a number, true, false, or a list of texts or numbers"
            )
        expected = _TYPES.get((key, each))
        if expected is not None and not _is(expected, held):
            raise _WrongError(f"{key}.{each}", expected)
    return dict(value)


def _is(expected: str, value: object) -> bool:
    if expected == _LIST:
        return _is_texts(value)
    return isinstance(value, bool if expected == _FLAG else str)


def _is_flat(value: list[object]) -> bool:
    return all(isinstance(each, str | int) for each in value)


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
