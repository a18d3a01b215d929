# SPDX-License-Identifier: MIT
"""The configuration: whether it can be read, configures VMs, and can be changed by root only."""

from __future__ import annotations

import shlex
import stat
from typing import TYPE_CHECKING

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
                why="without it the agent does not start, and one that runs stays with what it had",
                remedy=chain.error.hint,
            )
        return
    vms = chain.config.vms
    if not vms:
        yield problem(
            "configuration",
            f"{chain.file} configures no VM",
            why="nothing is sealed, and nothing rotates",
            remedy="add a table [vms.NAME]; see docs/configuration.md",
        )
    else:
        yield ok("configuration", f"{chain.file} configures {len(vms)} VM(s)")
    status = chain.file.stat()
    if status.st_uid != 0 or status.st_mode & _OTHERS_WRITE:
        path = shlex.quote(str(chain.file))
        yield problem(
            "configuration.mode",
            f"{chain.file} can be changed by others than root",
            why="it says which VM gets which secret, and which commands check their health",
            remedy="give it to root, and let nobody else write",
            commands=[f"chown root {path}", f"chmod go-w {path}"],
        )
    else:
        yield ok("configuration.mode", f"{chain.file} is root's alone to change")


def _is_readable(chain: Chain) -> bool:
    try:
        with chain.file.open("rb"):
            return True
    except OSError:
        return False
