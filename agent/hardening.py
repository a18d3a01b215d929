# SPDX-License-Identifier: MIT
"""Protects this process's memory: no core dumps, no reading by its own user's processes, no swap.

The unit sets ``LimitCORE=0`` and ``MemorySwapMax=0``. This module also protects verbs that an operator runs
by hand. It also covers what no unit setting does: a core piped to a handler, and processes of the same user.
"""

from __future__ import annotations

import ctypes
import os
import resource
from dataclasses import dataclass

_PR_SET_DUMPABLE = 4  # include/uapi/linux/prctl.h
# include/uapi/asm-generic/mman.h; different on alpha, powerpc and sparc, where cloud-hypervisor does not run
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4


@dataclass(frozen=True, slots=True)
class Hardening:
    """By measure: the reason why it failed; empty where it succeeded."""

    dumpable: str
    core: str
    swap: str


def harden() -> Hardening:
    """Apply each measure that is permitted. May be called again. Raises nothing.

    This holds for this process alone. Child processes inherit only the limit on cores.
    """
    return Hardening(hide(), _forbid_core_dumps(), _lock_memory())


def hide() -> str:
    """Make the process undumpable. Returns why that failed; empty for success.

    The kernel then writes no core, neither to a file nor to a handler (fs/coredump.c, do_coredump), gives
    /proc/PID's files to root (fs/proc/base.c, task_dump_owner), and lets nobody without CAP_SYS_PTRACE
    attach or read the memory (kernel/ptrace.c, __ptrace_may_access).
    """
    return _call("prctl", _PR_SET_DUMPABLE, 0, 0, 0, 0)


def _forbid_core_dumps() -> str:
    # Not enough alone: the kernel pipes a core to a handler whatever this limit is (fs/coredump.c).
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (OSError, ValueError) as error:  # Python raises ValueError for EPERM
        return "" if resource.getrlimit(resource.RLIMIT_CORE)[0] == 0 else str(error)
    return ""


def _lock_memory() -> str:
    """Keep all present and later memory out of swap. Each page is locked when it is first used.

    Locks nothing under a limit: the limit counts all address space, used or not, and later mappings would
    fail (mm/mmap.c, mlock_future_ok). While the limit is 0, mlockall() succeeds only with CAP_IPC_LOCK, to
    which no limit applies (mm/mlock.c, can_do_mlock).
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, hard))
    refused = _call("mlockall", _MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (soft, hard))
    return refused


def _call(function: str, *arguments: int) -> str:
    """Call a function of the C library. Returns why it failed; empty for success."""
    library = ctypes.CDLL(None, use_errno=True)
    # prctl() is variadic, and takes unsigned longs.
    if getattr(library, function)(*map(ctypes.c_ulong, arguments)) == 0:
        return ""
    return f"{function}: {os.strerror(ctypes.get_errno())}"
