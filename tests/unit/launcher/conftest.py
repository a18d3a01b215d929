# SPDX-License-Identifier: MIT
"""A launcher as a process of its own, and a hypervisor for it: a small stand-in, and the real one if given.

``CLOUD_HYPERVISOR=/path/to/cloud-hypervisor`` runs each test that takes `hypervisor` on that binary, too.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from credferry.launcher.handoff import (
    Channel,
    Delivery,
    Kind,
    Manifest,
    ManifestEntry,
    Secret,
    Stamp,
    unit_credential,
    value_file,
)
from tests.support.host import patience
from tests.support.kernel import kernel
from tests.support.modules import MODULES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

ROOT = Path(__file__).parents[3]
CANARY = "canary-4f9d1c"
CANARY_BASE64 = "Y2FuYXJ5LTRmOWQxYw=="
VM = "web"
INVOCATION = "0123456789abcdef0123456789abcdef"
_SECONDS = 20.0


def within() -> float:
    """Seconds until what is awaited must be there. Nothing is measured by it."""
    return _SECONDS * patience()


def sealed(size: int = 72) -> bytes:
    """What has the form of a credential that a guest's own key sealed, with so many bytes behind its header.

    As systemd-creds would write it, but for what only a key can tell.
    """
    kind = bytes.fromhex("5a1c6a86df9d4096b1d5a65e0862f19a")
    header = kind + struct.pack("<4I", 32, 1, 12, 16) + bytes(range(12)) + bytes(4)
    return base64.b64encode(header + bytes(index % 251 for index in range(size)))


def credentials(
    directory: Path, values: Mapping[str, tuple[Kind, bytes]], delivery: Delivery, vm: str = VM
) -> Manifest:
    """A generation as PID 1 would leave it in a unit's credential directory."""
    manifest = Manifest(
        vm=vm,
        generation=7,
        digest="ab" * 32,
        run="cd" * 16,
        delivery=delivery,
        credentials=tuple(ManifestEntry(name, kind, "0" * 16) for name, (kind, _) in values.items()),
    )
    manifest = manifest.bound({name: Secret(value) for name, (_, value) in values.items()}, "ef" * 32)
    directory.mkdir(exist_ok=True)
    (directory / unit_credential("manifest")).write_bytes(manifest.to_bytes())
    for name, (_, value) in values.items():
        (directory / unit_credential(value_file(name))).write_bytes(value)
    return manifest


@dataclass
class Vm:
    """One start of a VM's unit. ``process`` is the unit's main process."""

    directory: Path
    hypervisor: Path
    process: subprocess.Popen[bytes] | None = None
    errors: Path = field(init=False)

    def __post_init__(self) -> None:
        self.errors = self.directory / "stderr"
        self.runtime.mkdir(parents=True)
        (self.directory / "vmlinux").write_bytes(kernel())

    @property
    def runtime(self) -> Path:
        """The unit's runtime directory for this VM."""
        return self.directory / "run" / "credferry-vms" / VM

    @property
    def socket(self) -> Path:
        """The API socket where the command line has none."""
        return self.runtime / "api.sock"

    @property
    def environment(self) -> dict[str, str]:
        """What systemd puts there."""
        return {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(MODULES),
            "PYTHONDONTWRITEBYTECODE": "1",
            "CREDENTIALS_DIRECTORY": str(self.directory / "creds"),
            "RUNTIME_DIRECTORY": f"/run/else:{self.runtime}",
            "INVOCATION_ID": INVOCATION,
        }

    def credentials(self, channel: Channel = Channel.API, **values: tuple[Kind, bytes]) -> Manifest:
        """What PID 1 unseals for the next start."""
        return credentials(self.directory / "creds", values, Delivery(channel=channel))

    def command(self, *argv: str) -> list[str]:
        """The launcher's command with cloud-hypervisor's arguments after it."""
        return [sys.executable, "-m", "credferry.launcher", "--real", str(self.hypervisor), "--", *argv]

    def argv(self, *more: str, kernel: str | None = None) -> list[str]:
        """A small VM's arguments."""
        path = kernel or str(self.directory / "vmlinux")
        return ["--kernel", path, "--memory", "size=64M", "--serial", "null", "--console", "null", *more]

    def start(self, *argv: str, pass_fds: Sequence[int] = ()) -> None:
        """Start the unit's main process."""
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                self.command(*argv),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env=self.environment,
                cwd=self.directory,
                pass_fds=pass_fds,
            )

    @property
    def pid(self) -> int:
        """The unit's main process."""
        assert self.process is not None
        return self.process.pid

    def wait_stamp(self) -> Stamp:
        """The stamp, as soon as it is there; fails when the VMM ends first."""
        pidfd = os.pidfd_open(self.pid)
        try:
            deadline = time.monotonic() + within()
            while time.monotonic() < deadline:
                with contextlib.suppress(FileNotFoundError):
                    return Stamp.from_bytes((self.runtime / "stamp.json").read_bytes())
                if select.select([pidfd], [], [], 0.01)[0]:
                    break
        finally:
            os.close(pidfd)
        pytest.fail(f"no stamp: {self.said()}")

    def wait(self) -> int:
        """The main process's exit status, as `subprocess` has it."""
        assert self.process is not None
        return self.process.wait(within())

    def said(self) -> str:
        """Standard error so far."""
        return self.errors.read_text()

    def child(self) -> int:
        """The launcher's child."""
        (pid,) = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return int(pid)

    def call(self, method: str, endpoint: str, path: Path | None = None) -> tuple[int, Any]:
        """One request to the VMM's API, as ch-remote would send it."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(within())
            connection.connect(str(path or self.socket))
            connection.sendall(f"{method} /api/v1/{endpoint} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            data = b""
            while b"\r\n\r\n" not in data:
                more = connection.recv(65536)
                if not more:
                    raise ConnectionResetError(self.said())
                data += more
            head, _, body = data.partition(b"\r\n\r\n")
            lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            length = int(lengths[0].split(b":")[1]) if lengths else 0
            while len(body) < length:
                more = connection.recv(65536)
                if not more:
                    raise ConnectionResetError(self.said())
                body += more
        return int(head.split()[1]), json.loads(body) if body else None

    def end(self) -> None:
        """Leave no process behind."""
        if self.process is not None:
            if self.process.stdin is not None:
                self.process.stdin.close()
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGKILL)
            self.process.wait(within())


def _binaries() -> list[str]:
    return ["stand-in", *([os.environ["CLOUD_HYPERVISOR"]] if "CLOUD_HYPERVISOR" in os.environ else [])]


def stand_in(directory: Path) -> Path:
    """The stand-in as an executable."""
    path = directory / "idle-vmm"
    script = Path(__file__).with_name("idle_vmm.py")
    path.write_text(f"#!{sys.executable} -IS\n{script.read_text()}")
    path.chmod(0o755)
    return path


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A directory with a short name, as a socket's path has at most 107 bytes; pytest's own are longer."""
    with tempfile.TemporaryDirectory(prefix="vm-") as directory:
        yield Path(directory)


@pytest.fixture(params=_binaries())
def vm(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Vm]:
    """A VM's unit on each hypervisor there is."""
    binary = stand_in(tmp_path) if request.param == "stand-in" else Path(request.param)
    vm = Vm(tmp_path, binary)
    yield vm
    vm.end()


@pytest.fixture
def light_vm(tmp_path: Path) -> Iterator[Vm]:
    """A VM's unit on the stand-in only, for what a real hypervisor cannot be made to do."""
    vm = Vm(tmp_path, stand_in(tmp_path))
    yield vm
    vm.end()
