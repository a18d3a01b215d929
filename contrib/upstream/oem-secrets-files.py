# SPDX-License-Identifier: MIT
# ruff: noqa: INP001, T201 (a program by itself, without this project)
"""Starts cloud-hypervisor with OEM strings that are read from files, for microvm-oem-secrets-files.nix.

``--real PROGRAM ARGUMENT...``: the arguments are those that microvm.nix gives cloud-hypervisor. The files
are the unit's credentials whose names begin with ``oem-secret.``. The VM is created and booted over the API,
so no value is in an argument. Anything that this cannot say in the API's form is refused.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

CREDENTIAL = "oem-secret."
_SECONDS = 10.0
_VMM = {"--api-socket", "--seccomp", "--log-file", "--event-monitor"}
_SWITCHES = {"--watchdog": "watchdog", "--pvpanic": "pvpanic"}
_PAYLOAD = {"--kernel", "--initramfs", "--cmdline"}
_RENAMED = {"boot": "boot_vcpus", "max": "max_vcpus"}
_ONE = {"--cpus", "--memory", "--platform", "--vsock", "--balloon"}
_LISTS = {"--disk": "disks", "--fs": "fs", "--net": "net", "--device": "devices"}
_KEYS = {
    "--cpus": "boot kvm_hyperv max_phys_bits",
    "--memory": "size shared mergeable hugepages hugepage_size prefault thp",
    "--platform": "oem_strings num_pci_segments iommu_segments",
    "--vsock": "cid socket",
    "--balloon": "size deflate_on_oom free_page_reporting",
    "--disk": "path readonly direct num_queues queue_size image_type serial",
    "--fs": "tag socket num_queues queue_size",
    "--net": "tap mac num_queues queue_size mtu",
    "--device": "path iommu",
}
_TEXTS = {"path", "socket", "tag", "tap", "mac", "serial"}
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


class RefusedError(Exception):
    """An argument that has no counterpart here."""


def document(argv: list[str]) -> tuple[dict[str, Any], list[str]]:
    """The body of ``vm.create`` for a command line, and the arguments that stay. Raises `RefusedError`."""
    vm: dict[str, Any] = {}
    stay: list[str] = []
    for option, values in _options(argv):
        if option in _VMM:
            stay += [option, *values]
        elif option in _SWITCHES:
            vm[_SWITCHES[option]] = True
        elif option in _PAYLOAD:
            vm.setdefault("payload", {})[option[2:]] = values[0]
        elif option in {"--console", "--serial"}:
            if values[0] not in {"null", "off", "tty", "pty"}:
                raise RefusedError(f"{option} {values[0]}")
            vm[option[2:]] = {"mode": values[0].capitalize()}
        elif option in _ONE and len(values) == 1 and option[2:] not in vm:
            vm[option[2:]] = _table(option, values[0])
        elif option in _LISTS:
            vm.setdefault(_LISTS[option], []).extend(_table(option, value) for value in values)
        else:
            raise RefusedError(option)
    if "cpus" in vm:
        vm["cpus"]["max_vcpus"] = vm["cpus"]["boot_vcpus"]  # as the command line has it
    return vm, stay


def _options(argv: list[str]) -> list[tuple[str, list[str]]]:
    found: list[tuple[str, list[str]]] = []
    for word in argv:
        if word.startswith("-"):
            found.append((word, []))
        elif found:
            found[-1][1].append(word)
        else:
            raise RefusedError(word)
    return found


def _table(option: str, text: str) -> dict[str, Any]:
    table = {}
    for part in _parts(text):
        key, _, value = part.partition("=")
        if key not in _KEYS[option].split() or (option == "--memory" and "=" not in part):
            raise RefusedError(f"{option} {key}")
        table[_RENAMED.get(key, key)] = _value(key, value)
    return table


def _parts(text: str) -> list[str]:
    """The parts between commas that are not in brackets. A quote would change the meaning of commas."""
    if '"' in text:
        raise RefusedError("a quotation mark")
    return [part for part in re.split(r",(?![^\[]*\])", text) if part]


def _value(key: str, value: str) -> Any:  # noqa: ANN401 (JSON)
    if key in {"oem_strings", "iommu_segments"}:
        items = value.removeprefix("[").removesuffix("]").split(",")
        if any("[" in each or "]" in each for each in items):
            raise RefusedError(f"a bracket in {key}")
        return items if key == "oem_strings" else [int(each) for each in items]
    if key in _TEXTS:
        return value
    if key == "image_type":
        return value.capitalize()
    if value in {"on", "off"}:
        return value == "on"
    if found := re.fullmatch("([0-9]+)([KMG]?)", value):
        return int(found[1]) * _UNITS[found[2]]
    raise RefusedError(f"{key}={value}")


def strings(directory: Path) -> list[str]:
    """The OEM strings for the files of the unit."""
    return [
        f"io.systemd.credential.binary:{file.name.removeprefix(CREDENTIAL)}="
        + base64.b64encode(file.read_bytes()).decode()
        for file in sorted(directory.glob(f"{CREDENTIAL}*"))
    ]


def put(path: str, endpoint: str, body: bytes, deadline: float) -> None:
    """Send one request to the API, waiting for its socket. Raises `RefusedError` for a bad answer."""
    while True:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_SECONDS)
            try:
                connection.connect(path)
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
                continue
            head = (
                f"PUT /api/v1/{endpoint} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            connection.sendall(head.encode() + body)
            answer = connection.recv(4096)
            if not re.match(rb"HTTP/1\.[01] 2", answer):
                line = answer.partition(b"\r\n")[0].decode("ascii", "replace")
                raise RefusedError(f"{endpoint}: {line}")
            return


def main(argv: list[str]) -> int:
    """Start the VM, and end as cloud-hypervisor ends."""
    if argv[:1] != ["--real"] or not argv[1:]:
        print("oem-secrets-files: usage: --real PROGRAM ARGUMENT...", file=sys.stderr)
        return 64
    real, arguments = argv[1], argv[2:]
    try:
        vm, stay = document(arguments)
        api = stay[stay.index("--api-socket") + 1]
    except (RefusedError, ValueError) as error:
        print(f"oem-secrets-files: cannot be given over the API: {error}", file=sys.stderr)
        return 64
    vm.setdefault("platform", {}).setdefault("oem_strings", []).extend(
        strings(Path(os.environ["CREDENTIALS_DIRECTORY"]))
    )
    child = subprocess.Popen([real, *stay])
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _frame: child.send_signal(received))
    try:
        deadline = time.monotonic() + _SECONDS
        put(api, "vm.create", json.dumps(vm).encode(), deadline)
        put(api, "vm.boot", b"", deadline)
    except (OSError, RefusedError) as error:
        print(f"oem-secrets-files: {error}", file=sys.stderr)
        with contextlib.suppress(ProcessLookupError):
            child.kill()
    return child.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
