# SPDX-License-Identifier: MIT
"""The connection to systemd, made anew where it was lost; sealing goes on without it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import structlog

from credferry.agent.errors import BusError, describe

if TYPE_CHECKING:
    from collections.abc import Callable

    from credferry.agent.log import Conditions
    from credferry.agent.systemd.units import SystemManager

RETRY_SECONDS = 5.0
_KEY = "bus"
_log = structlog.get_logger()


class Connection:
    """Has at most one connection at a time; that it is lacking is reported once, until it is had again."""

    def __init__(
        self,
        connect: Callable[[], SystemManager],
        conditions: Conditions,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connect = connect
        self._monotonic = monotonic
        self._conditions = conditions
        self._manager: SystemManager | None = None
        self._retry_at = 0.0

    @property
    def present(self) -> SystemManager | None:
        """What is connected now, if anything. Any thread may ask."""
        return self._manager

    def get(self) -> SystemManager | None:
        """The same, connected first where it is time to try again."""
        if self._manager is None and self._monotonic() >= self._retry_at:
            try:
                self._manager = self._connect()
            except BusError as error:
                self.lose(error)
            else:
                if counted := self._conditions.end(_KEY, self._monotonic()):
                    _log.info("systemd can be reached again", unavailable_for=counted)
        return self._manager

    def lose(self, error: BusError) -> None:
        """Let go of it, for what it has failed with; it is tried again after `RETRY_SECONDS`."""
        self.close()
        self._manager = None
        self._retry_at = self._monotonic() + RETRY_SECONDS
        if self._conditions.begin(_KEY, "", self._monotonic()):
            _log.error("no restarts until systemd can be reached", reason=describe(error))

    def close(self) -> None:
        """Wake those that wait for a job; their calls fail from now on."""
        if self._manager is not None:
            self._manager.close()
