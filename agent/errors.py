# SPDX-License-Identifier: MIT
"""The agent's one base error, the table of exit statuses, and the report of an unexpected exception."""

from __future__ import annotations

import enum
import traceback
from typing import ClassVar


def describe(error: Exception) -> str:
    """An error in one line, with its remedy."""
    hint = getattr(error, "hint", "")
    return f"{error}: {hint}" if hint else str(error)


class ExitStatus(enum.IntEnum):
    """Exit statuses of the command `credferry`, from sysexits.h where one fits."""

    OK = 0
    FAILED = 1
    """Some of the work was not done: a VM was refused, or its restart failed."""
    USAGE = 2
    CREDENTIAL = 65
    SOURCE = 66
    UNAVAILABLE = 69
    INTERNAL = 70
    STORE = 73
    KEY = 77
    CONFIGURATION = 78


class CredferryError(Exception):
    """An error that ends a verb. The text names the object and the limit; ``hint`` says what to do.

    ``hint`` is empty if the text comes from another process and ends with the hint. Neither ever holds a
    secret value or the length of one.
    """

    status: ClassVar[ExitStatus] = ExitStatus.FAILED

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class Interrupted(BaseException):
    """Ctrl-C during a verb. Not KeyboardInterrupt, which typer would answer in its own words."""


class UsageError(CredferryError):
    """The arguments of a verb make no sense here."""

    status = ExitStatus.USAGE


class ConfigurationError(CredferryError):
    """The configuration file: unreadable, malformed, or asking for something impossible."""

    status = ExitStatus.CONFIGURATION


class UnknownVmError(ConfigurationError):
    """The configuration has no VM of this name."""


class VmError(CredferryError):
    """A VM was refused, or its restart failed. The other VMs were served."""


class OrderError(CredferryError):
    """An operator's order for a VM cannot be carried out. ``kind`` says why, in one word for programs."""

    def __init__(self, kind: str, message: str, *, hint: str) -> None:
        super().__init__(message, hint=hint)
        self.kind = kind


class SourceError(CredferryError):
    """The published secrets as a whole cannot be read."""

    status = ExitStatus.SOURCE


class HiddenSourceError(SourceError):
    """The agent's own unit hides the source from it: waiting for the producer does not help."""


class KeyFileError(CredferryError):
    """A credential key file is missing, unsafe, or belongs to another user or machine."""

    status = ExitStatus.KEY


class SealError(CredferryError):
    """A value cannot be sealed, or a sealed one cannot be opened."""

    status = ExitStatus.CREDENTIAL


class TpmError(SealError):
    """The TPM2 can be used for nothing now: it is missing, locked or busy, or does not answer."""


class StoreError(CredferryError):
    """The store of sealed generations cannot be read or written."""

    status = ExitStatus.STORE


class StoreFormError(CredferryError):
    """The store has the form of a later release. A restart of the agent does not help."""

    status = ExitStatus.CONFIGURATION


class UnsyncedStoreError(StoreError):
    """The store was written, but a power failure may undo that: the last sync failed."""


class UnlistableError(StoreError):
    """The generations of one VM cannot be listed. Those of the others may be fine."""


class JournalError(CredferryError):
    """The journal to read does not exist, or this process may not read it."""

    status = ExitStatus.UNAVAILABLE


class AgentError(CredferryError):
    """No agent runs, or the one that runs cannot be asked."""

    status = ExitStatus.UNAVAILABLE


class BusError(CredferryError):
    """systemd cannot be reached over D-Bus, or refuses."""

    status = ExitStatus.UNAVAILABLE


class FleetError(CredferryError):
    """What keeps the fleet's slots does not answer as it should, or has no such call."""

    status = ExitStatus.UNAVAILABLE


def place(error: BaseException) -> str:
    """The type and place of an unexpected error. Its text is left out: it may quote a secret."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {frame.name}, line {frame.lineno}"
