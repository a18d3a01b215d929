# SPDX-License-Identifier: MIT
"""Whether a NixOS switch is in progress. The agent sees this by the switch's lock, and never takes it.

switch-to-configuration takes the lock without waiting, and gives up if another process holds it (nixpkgs
pkgs/by-name/sw/switch-to-configuration-ng/src/main.rs). If the agent took it for a moment, a switch could
fail. The kernel lists all locks in ``/proc/locks`` (proc(5)).
"""

from __future__ import annotations

import os
from pathlib import Path

LOCKS = (Path("/run/credferry/locks"), Path("/proc/locks"))
"""Where to find the kernel's list. The agent's unit sees only processes in its /proc, so it has the list
bind-mounted at the first path."""


def is_locked(path: Path, lists: tuple[Path, ...] = LOCKS) -> bool:
    """Whether a process holds a lock on a file. False too if the kernel's list cannot be read."""
    return bool(holder(path, lists))


def holder(path: Path, lists: tuple[Path, ...] = LOCKS) -> str:
    """Text that identifies the lock on a file and its holder; empty if no lock is known."""
    try:
        status = path.stat()
    except OSError:
        return ""
    wanted = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    for each in lists:
        try:
            lines = each.read_text().splitlines()
        except OSError:
            continue
        if not lines:  # the first file is empty for processes other than the agent
            continue
        # "1: FLOCK  ADVISORY  WRITE 1234 00:1a:567 0 EOF"; a waiting lock has "->" after the number.
        held = (words for line in lines if wanted in (words := line.split()) and "->" not in words)
        # Leave out the line's number: it changes when other locks come and go.
        return next((" ".join(words[1:]) for words in held), "")
    return ""
