# SPDX-License-Identifier: MIT
"""Protects the values in this process's memory from core dumps and from the same user's other processes."""

from __future__ import annotations

import resource


def forbid_core_dumps() -> None:
    """Forbid core dumps of this process and of the cloud-hypervisor that it becomes: both hold the values.

    Call it before the first value is read. A handler to which the kernel pipes cores gets the limit, but
    may ignore it. systemd-coredump respects it.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def hide() -> None:
    """Forbid core dumps, and debuggers and readers of /proc/PID/mem without CAP_SYS_PTRACE.

    An exec undoes this. So it is for the child that stays beside cloud-hypervisor (fs/coredump.c,
    kernel/ptrace.c, fs/exec.c).
    """
    import ctypes  # noqa: PLC0415 (takes 3 ms: only the child has the time, while cloud-hypervisor starts)

    pr_set_dumpable = 4
    ctypes.CDLL(None).prctl(pr_set_dumpable, 0, 0, 0, 0)
