# SPDX-License-Identifier: MIT
"""A VM's devices in QEMU: disks, networks, shares and vsock, in cloud-hypervisor's order.

What has no counterpart here (balloon, watchdog, pmem, passed-through devices, vhost-user disks and networks)
is left out of the guest without a word. So is a vsock where no ``vhost-device-vsock`` is to be found: that
program stands between QEMU and the UNIX sockets which cloud-hypervisor serves by itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .schema import Json

_CONNECT_SECONDS = 60.0
"""How long cloud-hypervisor tries to reach a vhost-user backend (vhost_user/vu_common_ctrl.rs)."""
_RETRY_SECONDS = 0.02
_QCOW2_MAGIC = b"QFI\xfb"
_FORMATS = {"Raw": "raw", "Qcow2": "qcow2", "FixedVhd": "vpc", "Vhdx": "vhdx"}
_VSOCK_PROGRAM = "vhost-device-vsock"


class DeviceError(Exception):
    """A device that cannot be had; each argument is one link of the error's chain."""


class Devices:
    """QEMU's arguments for a VM's devices, and what they need while it runs. A context manager."""

    def __init__(self, config: Json) -> None:
        self._config = config
        self._stack = ExitStack()
        self._vsock: str | None = None
        self.arguments: list[str] = []
        self.descriptors: list[int] = []

    def __enter__(self) -> Self:
        """Connect and open everything. Raises `DeviceError`."""
        with ExitStack() as stack:
            self._stack = stack
            for number, disk in enumerate(self._config.get("disks", ())):
                if not disk["vhost_user"]:
                    self._add_disk(number, disk)
            for number, net in enumerate(self._config.get("net", ())):
                if not net["vhost_user"]:
                    self._add_net(number, net)
            for number, share in enumerate(self._config.get("fs", ())):
                self._add_share(number, share)
            program = shutil.which(_VSOCK_PROGRAM)
            if "vsock" in self._config and program is not None:
                self._add_vsock(self._config["vsock"], program)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stack.close()

    def close_passed(self) -> None:
        """Close this process's ends of the connections that QEMU has by now inherited."""
        while self.descriptors:
            os.close(self.descriptors.pop())

    def _add_disk(self, number: int, disk: Json) -> None:
        path = disk.get("path", "")
        block = {
            "node-name": f"disk{number}",
            "driver": _format(path, disk["image_type"]),
            "read-only": disk["readonly"],
            "cache": {"direct": disk["direct"]},
            "file": {"driver": "file", "filename": path},
        }
        device = {"driver": "virtio-blk-pci", "drive": f"disk{number}", "num-queues": disk["num_queues"]}
        if "serial" in disk:
            device["serial"] = disk["serial"]
        self.arguments += ["-blockdev", json.dumps(block), "-device", json.dumps(device)]

    def _add_net(self, number: int, net: Json) -> None:
        pairs = net["num_queues"] // 2
        backend = {"type": "tap", "id": f"net{number}", "vhost": False}
        if "fds" in net:
            # Copies: the VM's own must survive a reboot.
            copies = [self._passed(os.dup(descriptor)) for descriptor in net["fds"]]
            backend |= {"fds": ":".join(copies)} if len(copies) > 1 else {"fd": copies[0]}
        else:
            backend |= {"ifname": net.get("tap", "vmtap%d"), "script": "no", "downscript": "no"}
            if pairs > 1:
                backend["queues"] = pairs
        # Without an option ROM: nothing is to be booted from a network.
        device = {"driver": "virtio-net-pci", "netdev": f"net{number}", "mac": net["mac"], "romfile": ""}
        if pairs > 1:
            device |= {"mq": True, "vectors": 2 * pairs + 2}
        self.arguments += ["-netdev", json.dumps(backend), "-device", json.dumps(device)]

    def _add_share(self, number: int, share: Json) -> None:
        failed = (
            "Cannot create virtio-fs device",
            "Failed connecting the backend after trying for 1 minute",
        )
        device = {
            "driver": "vhost-user-fs-pci",
            "chardev": f"fs{number}",
            "tag": share["tag"],
            "num-request-queues": share["num_queues"],
            "queue-size": share["queue_size"],
        }
        self._add_vhost_user(share["socket"], device, failed)

    def _add_vsock(self, vsock: Json, program: str) -> None:
        failed = ("Cannot create virtio-vsock device", "Cannot create virtio-vsock backend")
        backend = f"{vsock['socket']}.vhost-user"
        self._stack.callback(_remove, backend)
        self._stack.callback(_remove, vsock["socket"])
        command = [program, f"--guest-cid={vsock['cid']}", f"--socket={backend}"]
        command += [f"--uds-path={vsock['socket']}"]
        _remove(backend)
        process = subprocess.Popen([*die_with_parent(), *command], stdin=subprocess.DEVNULL)
        self._stack.callback(_end, process)
        device = {"driver": "vhost-user-vsock-pci", "chardev": "vsock"}
        self._add_vhost_user(backend, device, failed, process)

    def _add_vhost_user(
        self,
        path: str,
        device: Mapping[str, object],
        failed: tuple[str, str],
        backend: subprocess.Popen[bytes] | None = None,
    ) -> None:
        # Connected here: cloud-hypervisor waits for a backend that is not up yet, and QEMU does not.
        number = self._passed(_connect(path, failed, backend))
        self.arguments += ["-chardev", f"socket,id={device['chardev']},fd={number}"]
        self.arguments += ["-device", json.dumps(device)]

    def _passed(self, descriptor: int) -> str:
        if not self.descriptors:
            self._stack.callback(self.close_passed)
        self.descriptors.append(descriptor)
        return str(descriptor)


def needs_shared_memory(config: Json) -> bool:
    """Whether another process than QEMU's serves one of the devices."""
    return bool(config.get("fs")) or "vsock" in config


def die_with_parent() -> list[str]:
    """What stands before a command that must not outlive this process, however this one ends."""
    program = shutil.which("setpriv")
    return [program, "--pdeathsig", "KILL", "--"] if program else []


def _format(path: str, image_type: str) -> str:
    if image_type in _FORMATS:
        return _FORMATS[image_type]
    try:
        with Path(path).open("rb") as image:
            return "qcow2" if image.read(len(_QCOW2_MAGIC)) == _QCOW2_MAGIC else "raw"
    except OSError as error:
        raise DeviceError(
            "Error from device manager",
            f"Failed to open disk path {path}",
            f"{error.strerror} (os error {error.errno})",
        ) from None


def _connect(path: str, failed: tuple[str, str], backend: subprocess.Popen[bytes] | None) -> int:
    deadline = time.monotonic() + _CONNECT_SECONDS
    while True:
        stream = socket.socket(socket.AF_UNIX)
        try:
            stream.connect(path)
        except OSError as error:
            stream.close()
            gone = backend is not None and backend.poll() is not None
            if time.monotonic() > deadline or gone:
                reason = f"{error.strerror} (os error {error.errno})"
                raise DeviceError("Error from device manager", *failed, reason) from None
            # Somebody else's socket: there is nothing to wait on but time.
            time.sleep(_RETRY_SECONDS)
        else:
            return stream.detach()


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        Path(path).unlink()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
