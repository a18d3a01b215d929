# SPDX-License-Identifier: MIT
"""The launcher's one base error, and its exit statuses."""

from __future__ import annotations

import enum
import errno

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final


def usage(message: str, hint: str) -> LaunchError:
    """A refusal of the command line."""
    return LaunchError(message, hint=hint, status=Exit.USAGE)


class Exit(enum.IntEnum):
    """Exit statuses. ``RestartPreventExitStatus=`` names all but `LATER`: another start cannot help."""

    USAGE = 64
    """The launcher's own arguments, or a cloud-hypervisor option that it does not know."""
    CREDENTIALS = 65
    """Credentials are missing, malformed, or over a limit."""
    HYPERVISOR = 69
    """cloud-hypervisor is not there, or refuses the VM."""
    LATER = 75
    """What the start lacks may be there in a moment: room, memory, descriptors, or a store in the present
    form, which the agent makes when it starts. So systemd tries again."""


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
"""What the kernel answers where the same call may succeed later, without anybody correcting anything."""

_AGAIN: Final = "the next start may do better; see to the host's memory, room and open files"


class LaunchError(Exception):
    """A start that is refused: the text names thing and limit, the hint the remedy; never a value."""

    def __init__(self, message: str, *, hint: str, status: Exit) -> None:
        super().__init__(message)
        self.hint = hint
        self.status = status

    def __str__(self) -> str:
        return f"{self.args[0]} ({self.hint})"


def failed(message: str, error: OSError | MemoryError, *, hint: str, status: Exit) -> LaunchError:
    """The refusal for a call that failed. Where that may pass by itself, systemd tries again after it."""
    if isinstance(error, MemoryError):
        return LaunchError(f"{message}: no memory", hint=_AGAIN, status=Exit.LATER)
    message = f"{message}: {error.strerror}"
    if error.errno in _PASSING:
        return LaunchError(message, hint=_AGAIN, status=Exit.LATER)
    return LaunchError(message, hint=hint, status=status)
