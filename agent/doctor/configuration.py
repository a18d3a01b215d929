# SPDX-License-Identifier: MIT
"""The configuration: whether it can be read, configures VMs, and can be changed by root only."""

from __future__ import annotations

import shlex
import stat
from typing import TYPE_CHECKING

from credferry.agent.config.model import MANUAL
from credferry.agent.doctor import probe
from credferry.agent.doctor.finding import ok, problem, unseen

if TYPE_CHECKING:
    from collections.abc import Iterator

    from credferry.agent.doctor.chain import Chain
    from credferry.agent.doctor.finding import Finding

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def check(chain: Chain) -> Iterator[Finding]:
    """The file, its mode, and what it configures."""
    if chain.error is not None:
        is_denied = not probe.is_root() and chain.file.exists()
        if is_denied and not _is_readable(chain):
            yield unseen("configuration", str(chain.error))
        else:
            yield problem(
                "configuration",
                str(chain.error),
                why="the agent cannot start without it; an agent that runs keeps its previous configuration",
                remedy=chain.error.hint,
            )
        return
    vms = chain.config.vms
    if not vms:
        yield problem(
            "configuration",
            f"{chain.file} configures no VM",
            why="the agent seals nothing and restarts nothing",
            remedy=f"add a table [vms.NAME]; see: {MANUAL}",
        )
    else:
        yield ok("configuration", f"{chain.file} configures {len(vms)} VM(s)")
    status = chain.file.stat()
    if status.st_uid != 0 or status.st_mode & _OTHERS_WRITE:
        path = shlex.quote(str(chain.file))
        yield problem(
            "configuration.mode",
            f"other users than root can change {chain.file}",
            why="the file decides which VM gets which secret, and which commands check a VM's health",
            remedy="give the file to root, and remove other users' permission to write",
            commands=[f"chown root {path}", f"chmod go-w {path}"],
        )
    else:
        yield ok("configuration.mode", f"only root can change {chain.file}")


def _is_readable(chain: Chain) -> bool:
    try:
        with chain.file.open("rb"):
            return True
    except OSError:
        return False
