# SPDX-License-Identifier: MIT
"""The launcher's one base error, and its exit statuses."""

from __future__ import annotations

import enum
import errno

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final


def usage(message: str, hint: str) -> LaunchError:
    """An error that refuses the command line (USAGE)."""
    return LaunchError(message, hint=hint, status=Exit.USAGE)


class Exit(enum.IntEnum):
    """Exit statuses. ``RestartPreventExitStatus=`` names `REFUSALS`, and so all of a start but `LATER`."""

    USAGE = 64
    """The launcher's own arguments are wrong, or it does not know a cloud-hypervisor option."""
    CREDENTIALS = 65
    """Credentials are missing, malformed, or over a limit."""
    HYPERVISOR = 69
    """cloud-hypervisor is missing, or refuses the VM."""
    LATER = 75
    """A retry may succeed, so systemd makes one. The start needs room, memory, descriptors, or a store in
    the current form, which the agent makes when it starts."""
    GUEST = 76
    """The guest refused a push, and changed nothing. A push is no start of the VM."""
    UNDONE = 77
    """A unit in the guest failed with the values of a push, and the guest has put the old values back."""
    UNKNOWN = 78
    """A push was sent, and nothing proves what the guest holds now. Another push can tell."""


REFUSALS: Final = (Exit.USAGE, Exit.CREDENTIALS, Exit.HYPERVISOR)
"""Statuses after which another start helps only once an operator has corrected something."""

_PASSING: Final = frozenset(
    {
        errno.EAGAIN,
        errno.EBUSY,
        errno.EDQUOT,
        errno.EINTR,
        errno.EIO,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOBUFS,
        errno.ENOMEM,
        errno.ENOSPC,
        errno.ETXTBSY,
    }
)
"""Errors of the kernel after which the same call may succeed later without any correction."""

_AGAIN: Final = "a later start may succeed; check the host's memory, free space and open files"


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


class LaunchError(Exception):
    """A refused start. The text names the cause and the limit, the hint names the remedy; never a value.

    Both may quote the name of an option or a key that somebody else wrote. Characters that a terminal would
    obey are escaped.
    """

    def __init__(self, message: str, *, hint: str, status: Exit) -> None:
        super().__init__(_printable(message))
        self.hint = _printable(hint)
        self.status = status

    def __str__(self) -> str:
        return f"{self.args[0]} ({self.hint})"


def failed(message: str, error: OSError | MemoryError, *, hint: str, status: Exit) -> LaunchError:
    """The error for a failed call. It has status LATER if a retry by systemd may succeed."""
    if isinstance(error, MemoryError):
        return LaunchError(f"{message}: no memory", hint=_AGAIN, status=Exit.LATER)
    message = f"{message}: {error.strerror}"
    if error.errno in _PASSING:
        return LaunchError(message, hint=_AGAIN, status=Exit.LATER)
    return LaunchError(message, hint=hint, status=status)
