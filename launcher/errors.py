# SPDX-License-Identifier: MIT
"""The launcher's one base error, and its exit statuses."""

from __future__ import annotations

import enum


class Exit(enum.IntEnum):
    """Exit statuses. All but `LATER` are for ``RestartPreventExitStatus=``: starting again cannot help."""

    USAGE = 64
    """The launcher's own arguments, or a cloud-hypervisor option that it does not know."""
    CREDENTIALS = 65
    """Credentials are missing, malformed, or over a limit."""
    HYPERVISOR = 69
    """cloud-hypervisor is not there, or refuses the VM."""
    LATER = 75
    """The store is of an earlier form. The agent renews it when it starts, so systemd tries again."""


class LaunchError(Exception):
    """A start that is refused: the text names thing and limit, the hint the remedy; never a value."""

    def __init__(self, message: str, *, hint: str, status: Exit) -> None:
        super().__init__(message)
        self.hint = hint
        self.status = status

    def __str__(self) -> str:
        return f"{self.args[0]} ({self.hint})"
