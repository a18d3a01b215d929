# SPDX-License-Identifier: MIT
"""What root writes below the state directory belongs to the agent's user."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from credferry.agent import hardening

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def as_owner_of(directory: Path) -> Iterator[None]:
    """Within this context, root makes files as the owner of a directory, and can do no more than that owner.

    The agent without root could not read a file of root's. A chown afterwards would be unsafe: the agent's
    user can put links there. Without root, or without the directory, nothing changes.
    """
    try:
        status = directory.stat()
    except OSError:
        yield  # the agent's unit gives the directory to the agent's user
        return
    user, group = os.geteuid(), os.getegid()
    if user != 0 or status.st_uid == 0:
        yield
        return
    try:
        os.setegid(status.st_gid)
        os.seteuid(status.st_uid)
        hardening.hide()  # with fs.suid_dumpable set, the change undid it (kernel/cred.c, commit_creds)
        yield
    finally:
        os.seteuid(user)
        os.setegid(group)
        hardening.hide()
