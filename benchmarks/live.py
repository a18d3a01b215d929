# SPDX-License-Identifier: MIT
"""From a publication to the guest's unit that runs with the value: pushed, pushed by hand, or restarted."""

from __future__ import annotations

import hashlib
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks.bed import INSIDE, words
from benchmarks.results import CREDFERRY, row
from tests.support.boot import HostError
from tests.support.cache import cache_directory
from tests.support.deployment import Deployment, guest_files
from tests.support.guest import DONE, OverlayFile, OverlayLink, Variant, guest, receiver, sealing_identity
from tests.support.host import Host
from tests.support.installation import install
from tests.support.live import with_vsock
from tests.support.producer import SopsNix

if TYPE_CHECKING:
    from benchmarks.results import Row
    from tests.support.guest import OverlayEntry

LIVE: Final = "publication to the guest's unit running with the new value"
BY_HAND: Final = "a push by hand"
RESTART: Final = "a restart of the VM"
CASE: Final = "1 secret, sealed for the guest"

_MACHINE_ID: Final = "be4c" * 8
_VM: Final = "bench"
_VALUE: Final = 'K = {{ secret = "k", live = {} }}\n'
# A busy machine's emulated guest takes long to start.
_CONFIG: Final = f"""\
[rollout]
stamp_seconds = 60.0
[vms.{_VM}]
live = true
guest_key = true
[vms.{_VM}.credentials]
"""
_HAND: Final = "bench-hand.service"
_PROGRAMS: Final = Path(__file__).with_name("inside")
_UNITS: Final = "/etc/systemd/system"
_SOCKET: Final = """\
[Unit]
Requires=credferry-guest-vsock.service
After=credferry-guest-vsock.service
[Socket]
ListenStream=vsock::901
Accept=yes
"""
_SERVICE: Final = """\
[Service]
ExecStart=/bin/sh /usr/lib/credferry-guest/hand-receive
StandardInput=socket
StandardOutput=socket
"""
_ROUNDS: Final = 2
_SECONDS: Final = 300.0


def measure(*, quick: bool) -> list[Row]:
    """Each contender in turn, twice: all of them in one guest, under emulation."""
    with Host(cache_directory()) as host:
        install(host)
        bed = _Bed(host)
        taken: dict[str, list[list[float]]] = {CREDFERRY: [], BY_HAND: [], RESTART: []}
        for _ in range(1 if quick else _ROUNDS):
            bed.start_agent(live=True)
            taken[CREDFERRY].append([bed.rotate("app") for _ in range(2 if quick else 4)])
            bed.stop_agent()
            bed.start_hand()
            taken[BY_HAND].append([bed.rotate("hand") for _ in range(2 if quick else 4)])
            host.run("systemctl", "stop", _HAND)
        for _ in range(1 if quick else _ROUNDS):
            bed.start_agent(live=False)
            taken[RESTART].append([bed.rotate("app")])
            bed.stop_agent()
        bed.close()
    for name, rounds in taken.items():
        sys.stderr.write(f"live: {name}: {words([value for each in rounds for value in each])}\n")
    return [row(LIVE, CASE, name, "ms", rounds) for name, rounds in taken.items()]


class _Bed:
    """A host with one VM whose guest has a unit for each way; the agent or a script runs, in turn."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._deployment = Deployment(host)
        self._producer = SopsNix(host)
        self._host.write(f"{INSIDE}/hand_push.sh", (_PROGRAMS / "hand_push.sh").read_bytes(), 0o755)
        self._producer.publish({"k": b"first"})
        self._deployment.configure(_CONFIG + _VALUE.format("true"))
        self._deployment.credferry("guest-key", "create", _VM, "--machine-id", _MACHINE_ID)
        key = host.path(f"/var/lib/credferry/guest-keys/{_VM}.secret").read_bytes()
        overlay = _overlay() | sealing_identity(_MACHINE_ID, key)
        files = guest_files(self._deployment, _VM, guest(Variant.BOOKWORM), overlay)
        self._deployment.add_vm(_VM, with_vsock(self._deployment, files))
        self._deployment.credferry("agent", "--once")
        self._deployment.start_vm(_VM)
        self._deployment.wait_printed(_VM, DONE, _SECONDS)

    def start_agent(self, *, live: bool) -> None:
        """Start the agent, and wait until the VM has what is published."""
        self._deployment.configure(_CONFIG + _VALUE.format("true" if live else "false"))
        self._deployment.start_agent()
        try:
            self._deployment.wait_in_step(_VM, _SECONDS)
        except HostError:
            sys.stderr.write(self._deployment.credferry("show", _VM, check=False))
            raise
        self.rotate("app")  # the first is not as the others

    def stop_agent(self) -> None:
        """Stop the agent once it has nothing left to do."""
        self._deployment.wait_in_step(_VM, _SECONDS)
        self._host.run("systemctl", "stop", "credferry.service")

    def start_hand(self) -> None:
        """Start the script, and wait for its first push."""
        socket = f"/var/lib/microvms/{_VM}/work/notify.vsock"
        self._host.run("systemd-run", f"--unit={_HAND}", f"{INSIDE}/hand_push.sh", "k", socket)
        self.rotate("hand")

    def rotate(self, unit: str) -> float:
        """Publish a value; milliseconds from the rename to the line that the guest's unit prints with it."""
        value = secrets.token_hex(16).encode()
        self._producer.publish({"k": value})
        published = self._host.path("/run/secrets").lstat().st_ctime_ns / 1e6
        line = f"credferry-guest: {unit} {hashlib.sha256(value).hexdigest()[:16]}"
        entry = self._host.wait_journal(
            lambda entry: line in entry.get("MESSAGE", ""), _SECONDS, _SYSTEMD_UNIT=f"microvm@{_VM}.service"
        )
        if unit == "app":
            self._deployment.wait_in_step(_VM, _SECONDS)
        return int(entry["__REALTIME_TIMESTAMP"]) / 1e3 - published

    def close(self) -> None:
        """Stop the VM, and remove what was laid out."""
        self._deployment.close()


def _overlay() -> dict[str, OverlayEntry]:
    units = {
        "app": ("K", ["LoadCredentialEncrypted=K:/run/credentials/@system/K"]),
        # By default, systemd allows five starts in ten seconds.
        "hand": ("K", ["LoadCredentialEncrypted=K:/run/pushed/K", "[Unit]", "StartLimitIntervalSec=0"]),
    }
    overlay: dict[str, OverlayEntry] = {
        **receiver(units),
        "/usr/lib/credferry-guest/hand-receive": OverlayFile((_PROGRAMS / "hand_receive.sh").read_bytes()),
        f"{_UNITS}/bench-hand.socket": OverlayFile(_SOCKET.encode()),
        f"{_UNITS}/bench-hand@.service": OverlayFile(_SERVICE.encode()),
        f"{_UNITS}/sockets.target.wants/bench-hand.socket": OverlayLink("../bench-hand.socket"),
    }
    del overlay[f"{_UNITS}/credferry-guest.target.wants/hand.service"]  # there is no value for it at boot
    return overlay
