# SPDX-License-Identifier: MIT
"""The operator's units around restarts: one before, one after, and one for a failure."""

from __future__ import annotations

import enum
from typing import Annotated

import msgspec

from credferry.agent.config.values import UnitTemplate


class BeforeFails(enum.StrEnum):
    """What the agent does if the unit before a restart fails."""

    WAIT = "wait"
    """The VM keeps what it runs, and the agent tries again later."""
    RESTART = "restart"


class AfterFails(enum.StrEnum):
    """What a failure of the unit after a restart means. The agent runs the unit again until it succeeds."""

    WARN = "warn"
    ROLLBACK = "rollback"
    """The same as a failed health check."""


class Units(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Units of the operator around restarts; ``%i`` is the VM's name. PID 1 runs them."""

    before: UnitTemplate = ""
    """Started before a restart of a VM that is up. The restart waits for its end."""
    after: UnitTemplate = ""
    """Started once the VM is up and healthy again, also after a rollback."""
    on_failure: UnitTemplate = ""
    """Started if a restart or push has failed, or is put off."""
    before_fails: BeforeFails = BeforeFails.WAIT
    after_fails: AfterFails = AfterFails.WARN
    retry_seconds: Annotated[float, msgspec.Meta(ge=1, le=86_400)] = 300.0
    """How long after a failure of ``before`` or ``after`` the unit is started again."""

    @property
    def templates(self) -> tuple[str, ...]:
        """The units that are configured."""
        return tuple(filter(None, (self.before, self.after, self.on_failure)))
