# SPDX-License-Identifier: MIT
"""The least that stands in for cloud-hypervisor in process-level tests, where there is no real one.

It speaks the API (create, add-net, boot, info, reboot, shutdown) and writes the event monitor's stream; it
runs no guest. As the real one it refuses to boot without a kernel file, ignores SIGCHLD, keeps the old
configuration over a reboot, and ends with status 0 on SIGTERM. SIGHUP is a guest that reboots.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

CREATED: dict[str, Any] = {}
RECREATES = 0.05
"""Seconds of work that a VM needs to be re-created."""
NETS: list[dict[str, Any]] = []
QUOTED = "/quoted"
"""A kernel of this path is refused with the whole configuration in the answer."""
BOOTS = {"/invalid": 400, "/conflict": 409}
"""The statuses that releases after 53 have for configurations that they refuse (`api_error_status_code`)."""
FAILED = ("Error from API", "The VM could not boot", "Cannot open kernel file")
ABSENT = "No such file or directory (os error 2)"


def value(option: str) -> str | None:
    """The value of an option of this process, if it is given."""
    words = sys.argv[1:]
    return words[words.index(option) + 1] if option in words else None


def emit(name: str) -> None:
    """One event, as cloud-hypervisor writes it."""
    monitor = value("--event-monitor")
    if monitor is not None:
        event = {"timestamp": {"secs": 1, "nanos": 2}, "source": "vm", "event": name, "properties": None}
        os.write(int(monitor.removeprefix("fd=")), (json.dumps(event, indent=2) + "\n\n").encode())


def reboot(*_: object) -> None:
    """A guest that reboots: the configuration stays, and nothing else is done until the VM is re-created."""
    emit("rebooting")
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    recreated = time.process_time() + RECREATES
    while time.process_time() < recreated:
        pass
    emit("rebooted")
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end(*_: object) -> None:
    """Shut down, and take the socket away."""
    emit("shutdown")
    path = value("--api-socket")
    if path is not None:
        Path(path.removeprefix("path=")).unlink(missing_ok=True)
    os._exit(0)


def act(endpoint: str, body: bytes, fds: list[int]) -> tuple[int, object]:
    """Do what a request asks."""
    match endpoint:
        case "vm.create":
            CREATED.update(json.loads(body))
            if "refuse" in CREATED["payload"]["kernel"]:
                return 500, ["Failed to create"]
        case "vm.add-net":
            NETS.append({**json.loads(body), "seen": [os.fstat(fd).st_ino for fd in fds]})
        case "vm.boot":
            kernel = CREATED["payload"]["kernel"]
            if not Path(kernel).is_file():
                return BOOTS.get(kernel, 500), [*FAILED, json.dumps(CREATED) if kernel == QUOTED else ABSENT]
            emit("booted")
        case "vm.reboot":
            reboot()
        case "vm.info":
            return 200, {"config": {**CREATED, "nets": NETS}}
        case "vmm.shutdown" | "vm.power-button":
            return -1, None
        case _:
            return 404, None
    return 204, None


def serve(listening: socket.socket) -> None:
    """Answer one connection after the other."""
    while True:
        connection, _ = listening.accept()
        with connection:
            data, fds, _, _ = socket.recv_fds(connection, 1024, 16)
            while b"\r\n\r\n" not in data:
                data += connection.recv(1024)
            head, _, body = data.partition(b"\r\n\r\n")
            fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
            length = int(fields.get(b"content-length", b"0"))
            while len(body) < length:
                body += connection.recv(65536)
            status, said = act(head.split()[1].decode().rpartition("/")[2], body, fds)
            text = b"" if said is None else json.dumps(said).encode()
            shown = 204 if status < 0 else status
            connection.sendall(
                f"HTTP/1.1 {shown} \r\nServer: x\r\nContent-Length: {len(text)}\r\n\r\n".encode() + text
            )
        if status < 0:
            end()


def main() -> None:
    """Run until told to end."""
    if sys.argv[1:] == ["--version"]:
        sys.stdout.write("cloud-hypervisor v53.0\n")
        return
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGHUP, reboot)
    path = value("--api-socket")
    if path is None:
        emit("booted")
        while True:
            signal.pause()
    if path.startswith("fd="):
        serve(socket.socket(fileno=int(path.removeprefix("fd="))))
    os.umask(0o077)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(path.removeprefix("path="))
        listening.listen(10)
        if "--kernel" in sys.argv:
            emit("booted")
        serve(listening)


if __name__ == "__main__":
    main()
