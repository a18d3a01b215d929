# SPDX-License-Identifier: MIT
"""Starting and ending a throwaway host's processes; `tests.support.host` is what tests use."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import ExitStack

BOOT_SECONDS = 180.0
_WARDEN = Path(__file__).with_name("warden.py")

# Nothing of the tests' own environment gets in: it may hold what is none of a host's business.
ENVIRONMENT = {
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "TERM": "dumb",
}


class HostError(Exception):
    """The throwaway host does not boot, or has not done in time what was waited for."""


def missing() -> str | None:
    """What this machine lacks for booting a host, in a few words; None where nothing is."""
    if os.geteuid() != 0:
        return "not root"
    for program in ("systemd-nspawn", "unshare", "nsenter", "setpriv", "dbus-daemon"):
        if shutil.which(program) is None:
            return f"no {program} (run tests/support/bootstrap full)"
    return None


def boot(cache: Path, stack: ExitStack, environment: Mapping[str, str]) -> int:
    """Boot a host, and leave its end to the stack. Returns the PID that its PID 1 has on this machine.

    Raises `HostError` with what systemd-nspawn says where it does not come up.
    """
    lacking = missing()
    if lacking:
        raise HostError(f"cannot boot a throwaway host: {lacking}")
    stage = cache / "host"  # a mount point; what is mounted there is seen by the warden only
    stage.mkdir(parents=True, exist_ok=True)
    console = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 (the stack closes it)
    notify = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
    notify.bind("")  # an abstract address that the kernel chooses
    address = "@" + notify.getsockname()[1:].decode()
    warden = stack.enter_context(
        subprocess.Popen(
            [
                *(*_scope(), sys.executable, "-I", str(_WARDEN), "hold", str(stage), *_binds(cache)),
                *(f"--setenv={name}={value}" for name, value in environment.items()),
            ],
            stdin=subprocess.PIPE,
            stdout=console,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for us, who then end it in order
            env={**ENVIRONMENT, "NOTIFY_SOCKET": address},
        )
    )
    stack.callback(_let_go, warden)
    end = time.monotonic() + BOOT_SECONDS
    while not _ready(notify, end):
        if warden.poll() is not None or time.monotonic() > end:
            console.seek(0)
            said = console.read().decode(errors="replace").strip()
            raise HostError(f"the throwaway host does not boot: {said or 'it says nothing'}")
    # systemd-nspawn passes the system's STATUS= on, which comes every second while a job is slow: unread,
    # they fill our queue, and its PID 1 waits for us for ever. To a closed socket it sends nothing.
    notify.close()
    return _leader_below(warden.pid)


def _binds(cache: Path) -> list[str]:
    # The cache, and the environment of the Python that runs this, may lie on a file system of their own, or
    # below /tmp, which is empty inside. Mounts below them (the stage is one) stay out.
    trees = [cache]
    if sys.prefix != sys.base_prefix and not Path(sys.prefix).is_relative_to(cache):
        trees.append(Path(sys.prefix))
    binds = [f"--bind-ro={tree}:{tree}:norbind" for tree in trees]
    if Path("/dev/kvm").exists():
        binds.append("--bind=/dev/kvm")
    return binds


def _scope() -> list[str]:
    """Where a systemd runs this machine, a scope that it leaves to us: ours are the control groups below."""
    if not Path("/run/systemd/system").is_dir():
        return []
    return ["systemd-run", "--scope", "--quiet", "--collect", "--property=Delegate=yes", "--"]


def _ready(notify: socket.socket, end: float) -> bool:
    """Whether systemd-nspawn says that the system inside is up; waits a moment for it to say anything."""
    notify.settimeout(max(0.01, min(0.5, end - time.monotonic())))
    with suppress(TimeoutError):
        return b"READY=1" in notify.recv(4096).splitlines()
    return False


def _leader_below(warden: int) -> int:
    """The PID of the first process below the warden that is PID 1 in a namespace two levels deeper."""
    depth = len(_namespace_pids(warden)) + 2
    below = [warden]
    while below:
        pid = below.pop()
        pids = _namespace_pids(pid)
        if len(pids) == depth and pids[-1] == "1":
            return pid
        for task in Path(f"/proc/{pid}/task").iterdir():
            below += [int(child) for child in (task / "children").read_text().split()]
    raise HostError("the throwaway host has no PID 1")


def _namespace_pids(pid: int) -> list[str]:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("NSpid:"):
            return line.split()[1:]
    raise HostError("the kernel has no PID namespaces")


def _let_go(warden: subprocess.Popen[bytes]) -> None:
    if warden.stdin:
        warden.stdin.close()
    warden.wait()
