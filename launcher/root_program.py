# SPDX-License-Identifier: MIT
"""``--root-program``: becomes a program, if only root can change it."""

from __future__ import annotations

import os

from credferry.launcher import arguments, trust
from credferry.launcher.errors import usage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn


def become(words: Sequence[str]) -> NoReturn:
    """Become a program, if only root can change its file. Raises `LaunchError`."""
    if len(words) != 1:
        raise usage(f"{arguments.ROOT_PROGRAM} takes exactly one path", "see credferry-launch --help")
    (path,) = words
    try:
        os.close(trust.open_file(path))
        os.execv(path, [path])  # noqa: S606 (no shell is wanted)
    except OSError as error:
        raise usage(f"cannot run {path}: {error.strerror}", "correct the VM's files") from None
