# SPDX-License-Identifier: MIT
"""Root's verbs in another user's state directory: the files that they make belong to that user.

If the files belonged to root, an agent without root could not open a verb's lock or remove a verb's
generation. A chown afterwards is unsafe: the agent's user can put symbolic links there, and so get any file.
So this module sets the thread's file system user (setfsuid(2)). The kernel then checks root's file access as
if the agent's user made it, and gives new files to that user. For systemd and the journal, root stays root.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from credferry.agent import hardening
from credferry.agent.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_LINUX_CAPABILITY_VERSION_3 = 0x20080522  # include/uapi/linux/capability.h
_CAP_DAC_READ_SEARCH = 1 << 2
_NOBODY_ASKS = 2**32 - 1
"""(uid_t) -1: as an argument it changes nothing, and the call returns the present id."""


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


@contextmanager
def as_owner_of(directory: Path) -> Iterator[None]:
    """Within this context, root makes and changes files as the owner of a directory.

    Root can still read everything. Without root, or without the directory, nothing changes. This holds for
    the calling thread, and for threads that it starts meanwhile. Raises `StoreError` where the kernel
    refuses.
    """
    try:
        status = directory.stat()
    except OSError:
        yield  # the first write makes the directory, and the unit gives it to the agent
        return
    if os.geteuid() != 0 or status.st_uid == 0:
        yield
        return
    try:
        _become(status.st_uid, status.st_gid, directory)
        yield
    finally:
        _library().setfsgid(os.getegid())
        _library().setfsuid(os.geteuid())  # also restores the capabilities that it removed
        hardening.hide()


def _become(uid: int, gid: int, directory: Path) -> None:
    library = _library()
    library.setfsgid(gid)
    library.setfsuid(uid)
    if library.setfsuid(_NOBODY_ASKS) != uid or library.setfsgid(_NOBODY_ASKS) != gid:
        raise _refused(directory)
    # That removes all capabilities over files (security/commoncap.c, cap_task_fix_setuid). Restore this one,
    # because the secrets and the host's key belong to other users.
    header, data = _Header(_LINUX_CAPABILITY_VERSION_3, 0), (_Data * 2)()
    if library.capget(ctypes.byref(header), data) != 0:
        raise _refused(directory)
    data[0].effective |= data[0].permitted & _CAP_DAC_READ_SEARCH
    if library.capset(ctypes.byref(header), data) != 0:
        raise _refused(directory)
    hardening.hide()  # with fs.suid_dumpable set, the change undid it (kernel/cred.c, commit_creds)


def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(None, use_errno=True)
    for function in (library.setfsuid, library.setfsgid):
        function.argtypes = (ctypes.c_uint32,)
    return library


def _refused(directory: Path) -> StoreError:
    return StoreError(
        f"{directory}: root cannot work there as its owner",
        hint="run the verb as that user, with CAP_DAC_READ_SEARCH",
    )
