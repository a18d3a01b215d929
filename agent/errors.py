# SPDX-License-Identifier: MIT
"""The agent's one base error, the table of exit statuses, and what is told of what nobody expected."""

from __future__ import annotations

import enum
import traceback
from typing import ClassVar


def describe(error: Exception) -> str:
    """An error in one line, with its remedy."""
    hint = getattr(error, "hint", "")
    return f"{error}: {hint}" if hint else str(error)


class ExitStatus(enum.IntEnum):
    """Exit statuses of the command `credferry`, where there is one after sysexits.h."""

    OK = 0
    FAILED = 1
    """Something that was to be done was not: a VM was refused, or its restart failed."""
    USAGE = 2
    CREDENTIAL = 65
    SOURCE = 66
    UNAVAILABLE = 69
    INTERNAL = 70
    STORE = 73
    KEY = 77
    CONFIGURATION = 78


class CredferryError(Exception):
    """Anything that ends a verb. The text names the thing and the limit, ``hint`` says what to do.

    Neither ever holds a secret value or the length of one.
    """

    status: ClassVar[ExitStatus] = ExitStatus.FAILED

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(CredferryError):
    """A verb was asked for in a way that makes no sense here."""

    status = ExitStatus.USAGE


class ConfigurationError(CredferryError):
    """The configuration file: unreadable, malformed, or asking for something impossible."""

    status = ExitStatus.CONFIGURATION


class VmError(CredferryError):
    """A VM was refused, or its restart failed; the others were served."""


class OrderError(CredferryError):
    """An operator's word on a VM cannot be followed. ``kind`` says why, in one word for programs."""

    def __init__(self, kind: str, message: str, *, hint: str) -> None:
        super().__init__(message, hint=hint)
        self.kind = kind


class SourceError(CredferryError):
    """The published secrets as a whole cannot be read."""

    status = ExitStatus.SOURCE


class HiddenSourceError(SourceError):
    """The agent's own unit hides the source from it: waiting for the producer does not help."""


class KeyFileError(CredferryError):
    """A credential key file is missing, unsafe, or somebody else's."""

    status = ExitStatus.KEY


class SealError(CredferryError):
    """A value cannot be sealed, or a sealed one cannot be opened."""

    status = ExitStatus.CREDENTIAL


class StoreError(CredferryError):
    """The store of sealed generations cannot be read or written."""

    status = ExitStatus.STORE


class StoreFormError(CredferryError):
    """The store is of a later release's form: to start again does not help."""

    status = ExitStatus.CONFIGURATION


class UnsyncedStoreError(StoreError):
    """The store was written, and a power failure may still undo that: the last sync has failed."""


class JournalError(CredferryError):
    """The journal that is to be read is not there, or not for us to read."""

    status = ExitStatus.UNAVAILABLE


class BusError(CredferryError):
    """systemd cannot be reached over D-Bus, or refuses."""

    status = ExitStatus.UNAVAILABLE


def place(error: BaseException) -> str:
    """The kind of an error that nobody expected, and where it was raised: its own text may quote a value."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {frame.name}, line {frame.lineno}"
