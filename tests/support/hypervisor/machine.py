# SPDX-License-Identifier: MIT
"""What runs a VM: QEMU with software emulation, or nothing at all."""

from __future__ import annotations

import contextlib
import enum
import json
import os
import re
import socket
import subprocess
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Protocol

from .devices import DeviceError, Devices, die_with_parent, needs_shared_memory

if TYPE_CHECKING:
    from .schema import Json

_START_SECONDS = 60.0
_QEMU = "qemu-system-x86_64"


class Outcome(enum.Enum):
    """How a VM ended by itself."""

    RESET = enum.auto()
    POWEROFF = enum.auto()
    FAILED = enum.auto()


class BootError(Exception):
    """A VM that cannot start; each argument is one link of the error's chain."""


class Machine(Protocol):
    """A VM that runs."""

    def fileno(self) -> int | None:
        """Readable when `outcome` may have something to say; None if it never does by itself."""

    def outcome(self) -> Outcome | None:
        """How it ended, or None while it runs. Never waits long."""

    def power_button(self) -> None:
        """Ask the guest to power off."""

    def stop(self) -> None:
        """End it at once and wait until it is gone."""


class LightMachine:
    """A VM without a guest: runs until it is told to end."""

    def __init__(self) -> None:
        self._ended: Outcome | None = None

    def fileno(self) -> int | None:
        """None: nothing happens by itself."""
        return None

    def outcome(self) -> Outcome | None:
        """Powered off, once the button was pressed."""
        return self._ended

    def power_button(self) -> None:
        """Power off."""
        self._ended = Outcome.POWEROFF

    def stop(self) -> None:
        """Nothing is there to stop."""


class QemuMachine:
    """A guest in QEMU, watched and steered over QMP on an inherited socket pair."""

    def __init__(self, config: Json) -> None:
        """Start the guest. Raises `BootError` with QEMU's own words if it does not come up."""
        self._buffer = b""
        self._reason: str | None = None
        self._answers: list[Json] = []
        with ExitStack() as stack, ExitStack() as lasting:
            try:
                devices = lasting.enter_context(Devices(config))
            except DeviceError as error:
                raise BootError(*error.args) from None
            ours, theirs = socket.socketpair()
            stack.callback(theirs.close)
            self._qmp = ours
            self._words = os.memfd_create("qemu-stderr", os.MFD_CLOEXEC)
            strings = [
                stack.enter_context(os.fdopen(_memfd(string), "rb"))
                for string in (config.get("platform") or {}).get("oem_strings", ())
            ]
            descriptors = [file.fileno() for file in strings]
            self._process = subprocess.Popen(
                [*_arguments(config, theirs.fileno(), descriptors), *devices.arguments],
                stdin=subprocess.DEVNULL,
                stderr=self._words,
                pass_fds=[
                    theirs.fileno(),
                    *descriptors,
                    *devices.descriptors,
                    *_inherited(config["payload"]),
                ],
            )
            devices.close_passed()
            self._lasting = lasting.pop_all()
        try:
            self._wait_until_up()
        except BaseException:
            self.stop()
            raise

    def fileno(self) -> int | None:
        """The QMP socket."""
        return self._qmp.fileno()

    def outcome(self) -> Outcome | None:
        """How the guest ended; its last words, if QEMU had any, go to standard error."""
        if self._receive(0.0):
            return None
        self._process.wait()
        if self._reason == "guest-reset":
            return Outcome.RESET
        if self._reason == "guest-shutdown":
            return Outcome.POWEROFF
        os.write(2, self._last_words().encode() + b"\n")
        return Outcome.FAILED

    def power_button(self) -> None:
        """Press the guest's ACPI power button."""
        self._command("system_powerdown")

    def stop(self) -> None:
        """Kill QEMU."""
        self._process.kill()
        self._process.wait()
        self._lasting.close()
        self._qmp.close()
        with contextlib.suppress(OSError):
            os.close(self._words)

    def _wait_until_up(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        greeted = False
        while True:
            if time.monotonic() > deadline:
                raise BootError("QEMU does not answer", f"gave up after {_START_SECONDS:.0f} s")
            alive = self._receive(1.0)
            for message in self._answers:
                if "QMP" in message:
                    self._command("qmp_capabilities")
                    greeted = True
                elif greeted and "return" in message:
                    self._answers.clear()
                    return
            self._answers.clear()
            if not alive and self._reason is None:
                raise BootError("QEMU does not start the VM", self._last_words())
            if not alive:
                return

    def _command(self, name: str) -> None:
        with contextlib.suppress(OSError):
            self._qmp.sendall(json.dumps({"execute": name}).encode() + b"\n")

    def _receive(self, seconds: float) -> bool:
        """Take in what QMP says, waiting so long for the first word; False once QEMU is gone."""
        while True:
            self._qmp.settimeout(seconds)
            try:
                data = self._qmp.recv(65_536)
            except (TimeoutError, BlockingIOError):
                return True
            except OSError:
                return False
            if not data:
                return False
            *lines, self._buffer = (self._buffer + data).split(b"\n")
            for line in filter(None, lines):
                self._understand(json.loads(line))
            seconds = 0.0

    def _understand(self, message: Json) -> None:
        if message.get("event") == "SHUTDOWN":
            self._reason = message["data"]["reason"]
        elif "event" not in message:
            self._answers.append(message)

    def _last_words(self) -> str:
        return os.pread(self._words, 4096, 0).decode(errors="replace").strip()


def _memfd(content: str) -> int:
    descriptor = os.memfd_create("oem-string", os.MFD_CLOEXEC)
    os.write(descriptor, content.encode())
    return descriptor


def _inherited(payload: Json) -> list[int]:
    """Descriptors that the payload names as files of this process: QEMU is another, and inherits them."""
    found = [
        re.fullmatch(r"/proc/self/fd/([0-9]+)", payload.get(key, "")) for key in ("kernel", "initramfs")
    ]
    return [int(match[1]) for match in found if match]


def _escaped(value: str) -> str:
    return value.replace(",", ",,")


def _arguments(config: Json, qmp: int, strings: list[int]) -> list[str]:
    """QEMU's command line. Strings are named by descriptor: no argument and no file on disk holds one."""
    payload = config["payload"]
    platform = config.get("platform") or {}
    size = f"{_memory(config['memory']) >> 20}M"
    # QEMU ends what it reads from path= with a NUL since commit a7a05f5f6a40 (10.0, and stable releases of
    # 2025). Before that, a string whose length is a power of two runs on into whatever lies behind it.
    # fmt: off
    arguments = [
        # QEMU must not outlive the VMM, however that ends.
        *die_with_parent(),
        _QEMU, "-M", "q35",
        # With cmpxchg16b, which Linux 6.12 uses wherever there is one, QEMU 7.2 now and then leaves rubbish
        # in the flags: about one boot of four crashed. Without it, none of 36 did.
        "-cpu", "max,cx16=off",
        # One thread for all CPUs: tests boot two guests at a time on machines with two cores.
        "-accel", "tcg,thread=single",
        "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-smp", str(config["cpus"]["boot_vcpus"]),
        "-m", size,
        *_backing(config, size),
        "-kernel", payload["kernel"],
        "-chardev", f"socket,id=qmp,fd={qmp}",
        "-mon", "chardev=qmp,mode=control",
        *_serial(config["serial"]),
    ]
    # fmt: on
    if "initramfs" in payload:
        arguments += ["-initrd", payload["initramfs"]]
    if "cmdline" in payload:
        arguments += ["-append", payload["cmdline"]]
    if "system_uuid" in platform:
        arguments += ["-uuid", platform["system_uuid"]]
    if "system_serial_number" in platform:
        arguments += ["-smbios", f"type=1,serial={_escaped(platform['system_serial_number'])}"]
    for descriptor in strings:
        arguments += ["-smbios", f"type=11,path=/proc/self/fd/{descriptor}"]
    return arguments


def _backing(config: Json, size: str) -> list[str]:
    if not needs_shared_memory(config):
        return []
    return [
        "-object",
        f"memory-backend-memfd,id=memory,share=on,size={size}",
        "-machine",
        "memory-backend=memory",
    ]


def _memory(memory: Json) -> int:
    zones: list[dict[str, Any]] = memory.get("zones", [])
    total: int = memory["size"] + sum(zone["size"] for zone in zones)
    return total


def _serial(serial: Json) -> list[str]:
    match serial["mode"]:
        case "Tty":
            return ["-chardev", "stdio,id=serial,signal=off", "-serial", "chardev:serial"]
        case "File":
            return [
                "-chardev",
                f"file,id=serial,path={_escaped(serial['file'])}",
                "-serial",
                "chardev:serial",
            ]
        case _:
            return ["-serial", "null"]


def start(config: Json, *, light: bool) -> Machine:
    """Start a VM. Raises `BootError`."""
    payload = config["payload"]
    if light:
        return LightMachine()
    if "firmware" in payload:
        raise BootError("The stand-in boots kernels only, not firmware")
    for name, what in (("kernel", "kernel file"), ("initramfs", "initramfs file")):
        if name in payload:
            try:
                os.close(os.open(payload[name], os.O_RDONLY | os.O_CLOEXEC))
            except OSError as error:
                raise BootError(
                    f"Cannot open {what}", f"{error.strerror} (os error {error.errno})"
                ) from None
    return QemuMachine(config)
