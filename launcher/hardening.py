# SPDX-License-Identifier: MIT
"""Keeping the values in this process's memory from core dumps, and from other processes of the same user."""

from __future__ import annotations

import resource


def forbid_core_dumps() -> None:
    """No core of this process, nor of the cloud-hypervisor that it becomes, which holds the values, too.

    Before the first value is read. A handler that the kernel pipes cores to is told the limit and need not
    mind it; systemd-coredump does.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def hide() -> None:
    """No core, no debugger and no reader of /proc/PID/mem without CAP_SYS_PTRACE, until an exec undoes it.

    So it is for the child that stays beside cloud-hypervisor (fs/coredump.c, kernel/ptrace.c, fs/exec.c).
    """
    import ctypes  # noqa: PLC0415 (3 ms that only the child has time for, while cloud-hypervisor starts)

    pr_set_dumpable = 4
    ctypes.CDLL(None).prctl(pr_set_dumpable, 0, 0, 0, 0)
