# SPDX-License-Identifier: MIT
"""Work of a VM's units on the host, for VMs from a spec: tap devices, shared directories, clean shutdown.

Names and conventions are those of microvm.nix. Its programs ``tap-up``, ``tap-down``, ``virtiofsd-run`` and
``microvm-shutdown`` do the same for microvm.nix's own VMs.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import time
from pathlib import Path

from credferry.launcher import trust
from credferry.launcher.errors import Exit, LaunchError, failed, usage
from credferry.launcher.hypervisor import api
from credferry.launcher.spec.model import GUEST_KEY_TAG, SHARES_DIRECTORY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

    from credferry.launcher.spec.model import Share, Spec

_OLD_VIRTIOFSD: Final = "/usr/lib/qemu/virtiofsd"
_VIRTIOFSD: Final = ("virtiofsd", "/usr/libexec/virtiofsd", _OLD_VIRTIOFSD)
"""Where distributions install it: in the search path, Debian 13, Debian 12 (QEMU's)."""
_READ_ONLY: Final = 'set -e; mount --bind "$1" "$1"; mount -o remount,bind,ro "$1"; shift; exec "$@"'
_ENDINGS: Final = frozenset({signal.SIGTERM, signal.SIGINT})
_API_SECONDS: Final = 10.0
_UP_SECONDS: Final = 30.0
_POLL_SECONDS: Final = 0.02


def tap_up(spec: Spec) -> None:
    """Create the VM's tap devices for its user, and bring them up. Raises `LaunchError`."""
    for network in spec.networks:
        if Path("/sys/class/net", network.tap).exists():
            _ip("link", "delete", network.tap)
        queues = ["multi_queue"] if network.queues > 1 else []
        _ip("tuntap", "add", "name", network.tap, "mode", "tap", "user", spec.user, "vnet_hdr", *queues)
        for address in network.addresses:
            _ip("address", "add", address, "dev", network.tap)
        _ip("link", "set", network.tap, "up")


def tap_down(spec: Spec) -> None:
    """Remove the VM's tap devices, and skip those that do not exist. Raises `LaunchError`."""
    for network in spec.networks:
        if Path("/sys/class/net", network.tap).exists():
            _ip("link", "delete", network.tap)


def shutdown(spec: Spec, pid: int) -> None:
    """Press the guest's power button, and wait until the hypervisor is gone. Raises `LaunchError`.

    The wait has no deadline of its own: the unit's ``TimeoutStopSec=`` limits it.
    """
    try:
        vmm = os.pidfd_open(pid)
        deadline = time.monotonic() + _API_SECONDS
        answer = api.put(api.connect(spec.api_socket, deadline), "vm.power-button", deadline=deadline)
    except ProcessLookupError:
        return
    except (OSError, api.ApiError):
        raise _failed(
            "cloud-hypervisor's API socket does not answer", "systemd ends the unit instead"
        ) from None
    if answer.good:
        select.select([vmm], [], [])


def virtiofsd(spec: Spec) -> None:
    """Serve the VM's shares until a signal ends this process. Raises `LaunchError`.

    Starts a share's virtiofsd again after the VM has ended. Once all of them listen, this function notifies
    systemd (``Type=notify``).
    """
    if not spec.shares:
        signal.pthread_sigmask(signal.SIG_BLOCK, _ENDINGS)
        _ready()
        signal.sigwait(_ENDINGS)
        return
    for share in spec.shares:
        _check_socket(share)
    if spec.machine_id is not None:
        _make_key_directory(spec, spec.machine_id)
    program = _program()
    running: dict[int, Share] = {}
    stop: list[int] = []
    for number in _ENDINGS:
        signal.signal(number, lambda number, _: _end(running, stop, number))
    for share in spec.shares:
        Path(share.socket).unlink(missing_ok=True)
        running[_serve(program, share)] = share
    _wait_until_up(spec.shares)
    _ready()
    while running:
        pid, status = os.wait()
        share = running.pop(pid)
        if stop:
            continue
        if status:
            _end(running, stop, signal.SIGTERM)
            raise _failed(f"virtiofsd of share {share.tag} failed", "see its messages before this one")
        running[_serve(program, share)] = share


def _check_socket(share: Share) -> None:
    """Refuse a socket in a directory that others can change: root creates it, and changes its group."""
    directory, _, name = share.socket.rpartition("/")
    if not directory.startswith("/") or not name:
        raise usage(
            f"the socket of share {share.tag} has no absolute path",
            f"remove it, or give a path below {SHARES_DIRECTORY}",
        )
    try:
        trust.check_directory(directory)
    except OSError as error:
        raise usage(
            f"cannot make the socket of share {share.tag} in {directory}: {error.strerror}",
            "the unit needs RuntimeDirectory=credferry-shares/%i",
        ) from None


def _make_key_directory(spec: Spec, machine_id: str) -> None:
    """Make root's directory for the guest's key, which is put there when the VM starts.

    The file ``machine-id`` lets the agent's command compare its configuration with the spec.
    """
    share = next(each for each in spec.shares if each.tag == GUEST_KEY_TAG)
    directory = Path(share.source)
    try:
        for each in (directory.parent, directory):
            each.mkdir(mode=0o700, exist_ok=True)
            trust.check_directory(str(each))
        (directory / "machine-id").write_text(f"{machine_id}\n", encoding="ascii")
    except OSError as error:
        raise failed(
            f"{directory} cannot be made", error, hint="run as root", status=Exit.HYPERVISOR
        ) from None


def _serve(program: str, share: Share) -> int:
    command = [program, f"--socket-path={share.socket}", "--socket-group=kvm"]
    if program == _OLD_VIRTIOFSD:
        command += ["-o", f"source={share.source}"]
        if share.readonly:  # it has no such option: serve a mount that nobody can write to
            command = ["unshare", "--mount", "/bin/sh", "-c", _READ_ONLY, "sh", share.source, *command]
            program = "unshare"
    else:
        command += [f"--shared-dir={share.source}", *(["--readonly"] if share.readonly else [])]
    return os.posix_spawnp(program, command, os.environ)


def _wait_until_up(shares: Sequence[Share]) -> None:
    deadline = time.monotonic() + _UP_SECONDS
    for share in shares:
        while not Path(share.socket).is_socket():
            if time.monotonic() > deadline:
                raise _failed(
                    f"virtiofsd of share {share.tag} does not listen", "see its messages before this one"
                )
            time.sleep(_POLL_SECONDS)


def _end(running: dict[int, Share], stop: list[int], number: int) -> None:
    stop.append(number)
    for pid in running:
        os.kill(pid, signal.SIGTERM)


def _ready() -> None:
    target = os.environ.get("NOTIFY_SOCKET")
    if target:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
            systemd.sendto(b"READY=1", target.replace("@", "\0", 1) if target.startswith("@") else target)


def _program() -> str:
    import shutil  # noqa: PLC0415 (for this verb only)

    for name in _VIRTIOFSD:
        found = shutil.which(name)
        if found is not None:
            return found
    raise _failed(
        "the program virtiofsd does not exist",
        "install virtiofsd: Debian 13 has it as a package, Debian 12 with QEMU",
    )


def _ip(*arguments: str) -> None:
    try:
        done = subprocess.run(["ip", *arguments], stdin=subprocess.DEVNULL, check=False)
    except FileNotFoundError:
        raise _failed("the program ip does not exist", "install iproute2") from None
    if done.returncode:
        raise _failed(f"ip {' '.join(arguments)} failed", "see its messages before this one")


def _failed(message: str, hint: str) -> LaunchError:
    return LaunchError(message, hint=hint, status=Exit.HYPERVISOR)
