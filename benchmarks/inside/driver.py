# SPDX-License-Identifier: MIT
"""The part of the benchmark that runs inside the host: publishes, and sees when systemd began the restarts.

Standard input has a JSON object a line, ``do`` and arguments; standard output the answer. Times are
CLOCK_MONOTONIC in nanoseconds, as systemd's own are. Standard library only.
"""

from __future__ import annotations

import json
import os
import secrets
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

LINK = Path("/run/secrets")
PARENT = Path("/run/secrets.d")
STARTED = "/run/bench/started"
_QUIET_SECONDS = 0.06
_STATUS_SECONDS = 30.0


class Driver:
    """sops-nix's way of publishing, without its decryption, and the light VMs' other end."""

    def __init__(self) -> None:
        os.umask(0o022)
        PARENT.mkdir(mode=0o751, exist_ok=True)
        if not PARENT.is_mount():
            subprocess.run(["mount", "-t", "ramfs", "-o", "mode=0751", "none", str(PARENT)], check=True)
        Path(STARTED).parent.mkdir(exist_ok=True)
        if not Path(STARTED).exists():
            os.mkfifo(STARTED)
            Path(STARTED).chmod(0o666)
        self._fifo = os.open(STARTED, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._pending = b""
        self._values: dict[str, bytes] = {}

    def populate(self, vms: int, each: int) -> None:
        """Publish so many secrets for each of so many VMs, all new; the first one's are ``v0.0`` and on."""
        self._values = {f"v{vm}.{number}": _value() for vm in range(vms) for number in range(each)}
        self._swap(self._prepare())

    def rotate(self, change: int, vms: list[str], unit: str, seconds: float) -> dict[str, Any]:
        """Publish with so many secrets changed, and wait for VMs of which each is to run with what is new.

        ``unit`` is that of a VM, with ``{}`` for its name. What a VM that did not come is missing from is
        ``vms`` of the answer; ``stale`` are starts with what was published before.
        """
        for name in list(self._values)[:change]:
            self._values[name] = _value()
        directory = self._prepare()
        self._drain()
        at, wall = self._swap(directory)
        end = time.monotonic() + seconds
        clocks: dict[str, str] = {}
        stale = 0
        while len(clocks) < len(vms) and (left := end - time.monotonic()) > 0:
            for vm, value, clock in self._told(left):
                if clock or value == self._values[f"{vm}.0"].decode():
                    clocks[vm] = clock
                else:
                    stale += 1
        units = {vm: unit.format(vm) for vm in clocks}
        began = dict(zip(units, _began(list(units.values())), strict=True))
        return {
            "at": at,
            "wall": wall,
            "stale": stale,
            "vms": {
                vm: {"accepted": began[vm], "exec": _nanoseconds(clock)} for vm, clock in clocks.items()
            },
        }

    def rest(self, unit: str, status: str | None = None) -> float:
        """Wait until a unit says so of itself, and its processes rest for a while; seconds taken."""
        began, seen, since = time.monotonic(), -1, time.monotonic()
        while status is not None and _status(unit) != status and time.monotonic() - began < _STATUS_SECONDS:
            time.sleep(_QUIET_SECONDS / 4)
        while time.monotonic() - since < _QUIET_SECONDS:
            used = _usage(unit)
            if used != seen:
                seen, since = used, time.monotonic()
            time.sleep(_QUIET_SECONDS / 8)
        self._prune()
        return time.monotonic() - began

    def starts(self, seconds: float) -> list[str]:
        """Which VMs start within so many seconds, each as often as it does."""
        end, seen = time.monotonic() + seconds, []
        while (left := end - time.monotonic()) > 0:
            seen += [vm for vm, _, _ in self._told(left)]
        return seen

    def _prepare(self) -> Path:
        directory = PARENT / str(int(LINK.readlink().name) + 1 if LINK.is_symlink() else 1)
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(0o751)
        for name, value in self._values.items():
            descriptor = os.open(f"{directory}/{name}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400)
            os.write(descriptor, value)
            os.close(descriptor)
        return directory

    @staticmethod
    def _swap(directory: Path) -> tuple[int, int]:
        beside = Path(f"/run/.secrets{secrets.token_hex(4)}")
        beside.mkdir(0o700)
        (beside / "tmp.symlink").symlink_to(directory)
        wall = time.time_ns()
        at = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        os.rename(beside / "tmp.symlink", LINK)  # noqa: PTH104 (nothing between the clock and the call)
        beside.rmdir()
        return at, wall

    @staticmethod
    def _prune() -> None:
        # Not right after the swap, as the producer would: it takes a processor from whoever reacts.
        current = int(LINK.readlink().name)
        for old in PARENT.iterdir():
            if int(old.name) < current:
                shutil.rmtree(old)

    def _told(self, seconds: float) -> list[tuple[str, str, str]]:
        """Lines of ``VM VALUE CLOCK``; who has no clock or no value to tell leaves it out."""
        if select.select([self._fifo], [], [], seconds)[0]:
            self._pending += os.read(self._fifo, 65536)
        *lines, self._pending = self._pending.split(b"\n")
        told = []
        for line in lines:
            vm, value, clock, *_ = (*line.decode().split(" "), "", "")
            told.append((vm, value, clock))
        return told

    def _drain(self) -> None:
        while self._told(0):
            pass


def _value() -> bytes:
    return secrets.token_hex(16).encode()


def _nanoseconds(clock: str) -> int:
    """From bash's EPOCHREALTIME, seconds with six digits after the point."""
    return int(clock.replace(".", "").replace(",", "")) * 1000 if clock else 0


def _began(units: list[str]) -> list[int]:
    """When systemd began to restart each: a unit leaves "active" once its job is accepted and run."""
    show = ["systemctl", "show", "--property=ActiveExitTimestampMonotonic", "--value", "--", *units]
    shown = subprocess.run(show, check=True, capture_output=True, text=True).stdout if units else ""
    return [int(word) * 1000 for word in shown.split()]


def _status(unit: str) -> str:
    show = ["systemctl", "show", "--property=StatusText", "--value", "--", unit]
    return subprocess.run(show, check=True, capture_output=True, text=True).stdout.strip()


def _usage(unit: str) -> int:
    """Microseconds of processor that a unit's processes have used; -2 where there is none."""
    try:
        with open(f"/sys/fs/cgroup/system.slice/{unit}/cpu.stat", encoding="ascii") as file:  # noqa: PTH123 (polled)
            return int(file.readline().split()[1])
    except OSError:
        return -2


def main() -> None:
    """Serve until standard input ends."""
    driver = Driver()
    for line in sys.stdin:
        call = json.loads(line)
        sys.stdout.write(json.dumps(getattr(driver, call.pop("do"))(**call)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
