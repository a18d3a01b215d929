# SPDX-License-Identifier: MIT
"""Whether a NixOS switch is in progress: told by the lock that it holds, which is never taken or tried.

switch-to-configuration takes it without waiting, and gives up where somebody else has it (nixpkgs
pkgs/by-name/sw/switch-to-configuration-ng/src/main.rs): a try of ours, however short, could fail a switch.
The kernel lists all locks in ``/proc/locks`` (proc(5)).
"""

from __future__ import annotations

import os
from pathlib import Path

LOCKS = (Path("/run/credferry/locks"), Path("/proc/locks"))
"""Where the kernel's list is; the first is where the agent's unit, whose /proc has nothing but processes,
has it bound to."""


def is_locked(path: Path, lists: tuple[Path, ...] = LOCKS) -> bool:
    """Whether somebody holds a lock on a file. False as well where the kernel's list cannot be read."""
    return bool(holder(path, lists))


def holder(path: Path, lists: tuple[Path, ...] = LOCKS) -> str:
    """What tells the process that holds a lock on a file from another one; empty where none is known."""
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
        if not lines:  # an empty file is there for others than the agent to see
            continue
        # "1: FLOCK  ADVISORY  WRITE 1234 00:1a:567 0 EOF"; one that waits has an arrow after its number.
        held = (words for line in lines if wanted in (words := line.split()) and "->" not in words)
        # All but the number of the line, which other locks change.
        return next((" ".join(words[1:]) for words in held), "")
    return ""
