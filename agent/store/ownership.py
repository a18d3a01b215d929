# SPDX-License-Identifier: MIT
"""Root in another user's state directory: where the agent is not root, what root's verbs make is its.

Were it root's, the agent could open no lock and prune no generation that a verb has made. To give it away
afterwards would let the agent's user, who may leave symbolic links there, be given anything. So the kernel
checks what root does to files, and owns what it makes, as if that user did it: by the thread's file system
user (setfsuid(2)). To systemd and to the journal root stays root.
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
"""As an id, (uid_t) -1: changes nothing, and tells what is."""


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
    """Within this, what root makes belongs to the owner of a directory, and root changes what that user may.

    Everything can still be read. Without root, or without the directory, nothing is different. Holds for the
    calling thread, and for those that it starts meanwhile. Raises `StoreError` where the kernel refuses.
    """
    try:
        status = directory.stat()
    except OSError:
        yield  # it is made with the first thing that is put there, and by the unit given to the agent
        return
    if os.geteuid() != 0 or status.st_uid == 0:
        yield
        return
    try:
        _become(status.st_uid, status.st_gid, directory)
        yield
    finally:
        _library().setfsgid(os.getegid())
        _library().setfsuid(os.geteuid())  # gives back what capabilities it took
        hardening.hide()


def _become(uid: int, gid: int, directory: Path) -> None:
    library = _library()
    library.setfsgid(gid)
    library.setfsuid(uid)
    if library.setfsuid(_NOBODY_ASKS) != uid or library.setfsgid(_NOBODY_ASKS) != gid:
        raise _refused(directory)
    # With that all capabilities over files go (security/commoncap.c, cap_task_fix_setuid). This one comes
    # back: secrets, and the host's key, belong to others.
    header, data = _Header(_LINUX_CAPABILITY_VERSION_3, 0), (_Data * 2)()
    if library.capget(ctypes.byref(header), data) != 0:
        raise _refused(directory)
    data[0].effective |= data[0].permitted & _CAP_DAC_READ_SEARCH
    if library.capset(ctypes.byref(header), data) != 0:
        raise _refused(directory)
    hardening.hide()  # the change has undone it where fs.suid_dumpable is set (kernel/cred.c, commit_creds)


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
