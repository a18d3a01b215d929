# SPDX-License-Identifier: MIT
"""Keeping what this process's memory holds to itself: no core dumps, no reader of its own user, no swap.

The unit says much of it by ``LimitCORE=0`` and ``MemorySwapMax=0``; this holds for verbs run by hand, and
against what no setting of a unit covers: a core piped to a handler, and other processes of the same user.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
from dataclasses import dataclass

_PR_SET_DUMPABLE = 4  # include/uapi/linux/prctl.h
# include/uapi/asm-generic/mman.h; other on alpha, powerpc and sparc, none of which has cloud-hypervisor
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4
_MAP_NORESERVE = 0x4000  # the same; Python has a name for it from 3.13 on
_PLENTY = 1 << 36
"""Bytes of address space: more than the agent comes to use, less than any 64-bit process may have."""


@dataclass(frozen=True, slots=True)
class Hardening:
    """What was done, each by its reason for not having been done: empty where it was."""

    dumpable: str
    core: str
    swap: str


def harden() -> Hardening:
    """Do what is permitted, and go on without the rest. May be called again. Raises nothing.

    For this process alone: what it starts inherits no more than the limit on cores.
    """
    return Hardening(hide(), _forbid_core_dumps(), _lock_memory())


def hide() -> str:
    """Make the process undumpable; why that failed, or nothing.

    The kernel then writes no core, neither to a file nor to a handler (fs/coredump.c, do_coredump), gives
    /proc/PID's files to root (fs/proc/base.c, task_dump_owner), and lets nobody without CAP_SYS_PTRACE
    attach or read the memory (kernel/ptrace.c, __ptrace_may_access).
    """
    return _call("prctl", _PR_SET_DUMPABLE, 0, 0, 0, 0)


def _forbid_core_dumps() -> str:
    # A handler that the pattern pipes to is run whatever this limit is (fs/coredump.c): it is not enough.
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (OSError, ValueError) as error:  # Python has a ValueError for EPERM
        return "" if resource.getrlimit(resource.RLIMIT_CORE)[0] == 0 else str(error)
    return ""


def _lock_memory() -> str:
    """Keep all memory, also that which comes later, out of swap; a page is locked when it is first used.

    Not under a limit: address space then counts whole, used or not, and what is mapped later fails to be
    (mm/mmap.c, mlock_future_ok). Whether one applies to us the kernel is asked, by mapping a lot.
    """
    refused = _call("mlockall", _MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT)
    if refused:
        return refused
    try:
        mmap.mmap(-1, _PLENTY, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE, prot=0).close()
    except OSError as error:
        _call("munlockall")
        return f"locked memory is limited: {os.strerror(error.errno or 0)}"
    return ""


def _call(function: str, *arguments: int) -> str:
    """Call into the C library; why it failed, or nothing."""
    library = ctypes.CDLL(None, use_errno=True)
    # prctl() is variadic, and takes unsigned longs.
    if getattr(library, function)(*map(ctypes.c_ulong, arguments)) == 0:
        return ""
    return f"{function}: {os.strerror(ctypes.get_errno())}"
