# SPDX-License-Identifier: MIT
"""Two VMs with emulated guests, whose services answer over vsock and are asked every ten milliseconds.

`LAUNCHED` is started by credferry's launcher. Its guest has the receiver, and also takes a push by hand, and
pulls. `WRAPPED` is started by the shell's wrapper.
"""

from __future__ import annotations

import json
import queue
import secrets
import shlex
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from benchmarks.bed import INSIDE
from tests.support.boot import HostError
from tests.support.deployment import Deployment, guest_files
from tests.support.guest import (
    DONE,
    SHELL_PORT,
    OverlayFile,
    OverlayLink,
    Variant,
    guest,
    receiver,
    sealing_identity,
    shell,
    vsock_client,
)
from tests.support.host import patience
from tests.support.installation import HYPERVISOR, install
from tests.support.live import with_vsock
from tests.support.producer import SopsNix

if TYPE_CHECKING:
    from tests.support.guest import OverlayEntry
    from tests.support.host import Host

LAUNCHED: Final = "bench"
WRAPPED: Final = "plain"
SECONDS: Final = 300.0

_MACHINE_ID: Final = "be4c" * 8
_PROGRAMS: Final = Path(__file__).with_name("inside")
_UNITS: Final = "/etc/systemd/system"
_INSIDE_GUEST: Final = "/usr/lib/credferry-guest"
_PRODUCT: Final = "[source]\n[rollout]\nstamp_seconds = 60.0\n"  # a busy machine's emulated guest takes long
_CONFIG: Final = """\
[vms.bench]
live = true
guest_key = true
[vms.bench.credentials]
K = {{ secret = "bench.k", live = {} }}
"""
_AFTER_VSOCK: Final = (
    "[Unit]\nRequires=credferry-guest-vsock.service\nAfter=credferry-guest-vsock.service\n"
    "StartLimitIntervalSec=0\n"
)
_HAND_SOCKET: Final = f"{_AFTER_VSOCK}[Socket]\nListenStream=vsock::901\nAccept=yes\n"
_HAND_SERVICE: Final = f"""\
[Service]
ExecStart=/bin/sh {_INSIDE_GUEST}/hand-receive
StandardInput=socket
StandardOutput=socket
"""
_PULL: Final = f"""\
[Unit]
After=credferry-guest-vsock.service
[Service]
ExecStart=/bin/sh {_INSIDE_GUEST}/pull %i 60 pulled.service
"""


@dataclass(frozen=True, slots=True)
class Service:
    """A unit in a guest that answers with its credential, to those who ask on a vsock port of the host."""

    vm: str
    name: str
    port: int
    loads: str
    credential: str = "K"

    @property
    def text(self) -> str:
        """The unit's file."""
        return (
            f"{_AFTER_VSOCK}[Service]\nType=notify\n{self.loads}\n"
            f"ExecStart=/usr/bin/perl {_INSIDE_GUEST}/answer {self.port} {self.credential}\n"
        )


APP: Final = Service(LAUNCHED, "app", 905, "LoadCredentialEncrypted=K:/run/credentials/@system/K")
HAND: Final = Service(LAUNCHED, "hand", 906, "LoadCredentialEncrypted=K:/run/pushed/K")
PULLED: Final = Service(LAUNCHED, "pulled", 908, "LoadCredential=K:/run/pulled/K")
PLAIN: Final = Service(WRAPPED, "plain", 907, "LoadCredential=plain.K", "plain.K")


@dataclass(frozen=True, slots=True)
class Outage:
    """Milliseconds until a service answered with the new value, and those without answers on the way."""

    reached: float
    silent: float


class Asked:
    """A service that is asked every ten milliseconds. A context manager."""

    def __init__(self, host: Host, service: Service) -> None:
        self._process = host.spawn(
            *("/usr/bin/python3", "-IS", f"{INSIDE}/asker.py", f"{socket_of(service.vm)}_{service.port}")
        )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(20)

    def wait(self, began: float, says: str | None, seconds: float = SECONDS) -> Outage:
        """Wait for an answer with this value, or after a break. Raises `HostError`."""
        silent = 0.0
        while True:
            try:
                line = self._lines.get(timeout=seconds * patience())
            except queue.Empty:
                raise HostError(f"no answer from the guest within {seconds:.0f} s") from None
            if not line:
                assert self._process.stderr  # noqa: S101 (spawned with pipes)
                raise HostError(f"the asker ended: {self._process.stderr.read()}")
            found = json.loads(line)
            if found["at"] < began:
                continue
            silent += found["at"] - max(found["last"], began)
            if says is None or found["says"] == says:
                return Outage(found["at"] - began, silent)

    def _read(self) -> None:
        assert self._process.stdout  # noqa: S101 (spawned with pipes)
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")


class Guests:
    """A host with the two VMs, an agent that is not started yet, and a producer."""

    def __init__(self, host: Host) -> None:
        install(host)
        self.host = host
        self.deployment = Deployment(host)
        self._producer = SopsNix(host, keep=3)
        self._values = {"bench.k": b"first", "plain.K": b"first"}
        for file in _PROGRAMS.iterdir():
            if file.is_file():
                host.write(f"{INSIDE}/{file.name}", file.read_bytes(), 0o755)
        self._producer.publish(self._values)
        self._add_wrapped()
        self._add_launched()

    def configure(self, *, live: bool) -> None:
        """Write the agent's configuration: it pushes the value, or restarts the VM."""
        self.deployment.configure(_PRODUCT + _CONFIG.format("true" if live else "false"))

    def publish(self, service: Service) -> tuple[float, str]:
        """Publish a new value for the service; the rename's time in ms, and the answer to wait for."""
        value = secrets.token_hex(16)
        self._values["bench.k" if service.vm == LAUNCHED else "plain.K"] = value.encode()
        self._producer.publish(self._values)
        return self.host.path("/run/secrets", follow=False).lstat().st_ctime_ns / 1e6, value[:16]

    def tell(self, script: str) -> str:
        """What a shell in the guest of the launched VM prints."""
        command = ("/usr/bin/python3", "-IS", f"{INSIDE}/tell.py", socket_of(LAUNCHED), str(SHELL_PORT))
        return self.host.run(*command, stdin=script, timeout=SECONDS).stdout

    def wire(self, drop_in: str) -> None:
        """Give the wrapped VM a drop-in, in place of the one before it, and restart it."""
        self.host.write(f"{_UNITS}/microvm@{WRAPPED}.service.d/60-contender.conf", drop_in)
        self.host.run("systemctl", "daemon-reload")
        self.host.run("systemctl", "restart", f"microvm@{WRAPPED}.service")

    def _add_launched(self) -> None:
        self.configure(live=True)
        self.deployment.credferry("guest-key", "create", LAUNCHED, "--machine-id", _MACHINE_ID)
        key = self.host.path(f"/var/lib/credferry/guest-keys/{LAUNCHED}.secret").read_bytes()
        overlay = {
            **_overlay(APP, HAND, PULLED),
            **shell(),
            **sealing_identity(_MACHINE_ID, key),
            f"{_INSIDE_GUEST}/hand-receive": _program("hand_receive.sh"),
            f"{_INSIDE_GUEST}/pull": _program("pull.sh"),
            f"{_UNITS}/bench-hand.socket": OverlayFile(_HAND_SOCKET.encode()),
            f"{_UNITS}/bench-hand@.service": OverlayFile(_HAND_SERVICE.encode()),
            f"{_UNITS}/sockets.target.wants/bench-hand.socket": OverlayLink("../bench-hand.socket"),
            f"{_UNITS}/pull@.service": OverlayFile(_PULL.encode()),
            f"{_UNITS}/credferry-guest.target.wants/app.service": OverlayLink("../app.service"),
        }
        files = guest_files(self.deployment, LAUNCHED, guest(Variant.BOOKWORM), overlay)
        self.deployment.add_vm(LAUNCHED, with_vsock(self.deployment, files))
        self.deployment.credferry("agent", "--once")
        self.deployment.start_vm(LAUNCHED)
        self.deployment.wait_printed(LAUNCHED, DONE, SECONDS)

    def _add_wrapped(self) -> None:
        overlay = _overlay(PLAIN)
        overlay[f"{_UNITS}/credferry-guest.target.wants/plain.service"] = OverlayLink("../plain.service")
        files = guest_files(self.deployment, WRAPPED, guest(Variant.BOOKWORM), overlay)
        words = list(with_vsock(self.deployment, files, cid=6).arguments)
        at = words.index("--platform")
        words = ["--cpus", files.cpus, *words[:at], *words[at + 2 :]]
        # The asker makes its socket there before the VM's first start.
        work = str(Path(socket_of(WRAPPED)).parent)
        self.host.run("install", "--directory", "--owner=microvm", "--group=kvm", work)
        start = shlex.join([f"{INSIDE}/wrapper.sh", "command", HYPERVISOR, *words])
        self.deployment.add_vm(WRAPPED, replace(files, launcher=False, before=f"exec {start}"))


def socket_of(vm: str) -> str:
    """The UNIX socket of a VM's vsock, on the host."""
    return f"/var/lib/microvms/{vm}/work/notify.vsock"


def _overlay(*services: Service) -> dict[str, OverlayEntry]:
    overlay = {
        **receiver({}),
        **vsock_client(Variant.BOOKWORM),
        f"{_INSIDE_GUEST}/answer": _program("answer.pl"),
    }
    for each in services:
        overlay[f"{_UNITS}/{each.name}.service"] = OverlayFile(each.text.encode())
    return overlay


def _program(name: str) -> OverlayFile:
    return OverlayFile((_PROGRAMS / name).read_bytes())
