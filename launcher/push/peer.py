# SPDX-License-Identifier: MIT
"""Checks that the process behind a socket belongs to the VM's unit.

VMs may share a user, so another VM can listen at this VM's path, or note another path. The kernel says which
process made the socket listen (SO_PEERCRED), and systemd keeps each unit's processes in a cgroup that only
root can change. Where the kernel can (SO_PEERPIDFD, Linux 6.5), the check also excludes that this process
has ended and its PID belongs to another one now.
"""

from __future__ import annotations

import os
import select
import socket
import struct

from credferry.launcher.errors import Exit, LaunchError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_SO_PEERPIDFD: Final = 77
_CREDENTIALS: Final = struct.Struct("3i")
_CGROUP_MAX: Final = 64 << 10


def check(connection: socket.socket, unit: str) -> None:
    """Refuse a listener that does not belong to the unit. Raises `LaunchError` (HYPERVISOR)."""
    said = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid: int = _CREDENTIALS.unpack(said)[0]
    pidfd = _pidfd(connection)
    try:
        # In this order: a process that still runs after its cgroup was read has had this PID all the time.
        is_own = pid > 0 and is_in_unit(_cgroup(pid), unit)
        if not is_own or (pidfd is not None and _has_ended(pidfd)):
            raise LaunchError(
                f"the listener at the VM's vsock socket, process {pid}, does not belong to {unit}",
                hint="nothing was sent; see what this process is, and restart the VM; "
                "if the VM has another unit, name it with --unit",
                status=Exit.HYPERVISOR,
            )
    finally:
        if pidfd is not None:
            os.close(pidfd)


def is_in_unit(cgroup: str, unit: str) -> bool:
    """Whether a cgroup's path is that of a system unit, or below it.

    All components before the unit must be slices. A user manager's cgroups, in which its user can make
    any names, are below a service.
    """
    parts = cgroup.split("/")[1:]
    while parts and parts[0].endswith(".slice"):
        del parts[0]
    return parts[:1] == [unit]


def _cgroup(pid: int) -> str:
    """A process's cgroup in the unified hierarchy; empty if it has ended."""
    try:
        with open(f"/proc/{pid}/cgroup", "rb") as file:
            lines = file.read(_CGROUP_MAX).split(b"\n")
    except OSError:
        return ""
    return next((os.fsdecode(line[3:]) for line in lines if line.startswith(b"0::")), "")


def _pidfd(connection: socket.socket) -> int | None:
    """A pidfd of the listener, or None where the kernel has none."""
    try:
        return connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError:
        return None


def _has_ended(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))
