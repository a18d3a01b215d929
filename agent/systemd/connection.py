# SPDX-License-Identifier: MIT
"""The connection to systemd. It is made again after a loss; sealing continues without it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from credferry.agent.errors import BusError, describe
from credferry.agent.messages import Messages

if TYPE_CHECKING:
    from collections.abc import Callable

    from credferry.agent.log import Conditions
    from credferry.agent.systemd.units import SystemManager

RETRY_SECONDS = 5.0
_KEY = "bus"
_log = Messages()


class Connection:
    """Keeps at most one connection. Logs its loss once, and once when it is there again."""

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
        """The present connection; None for none. Any thread may call this."""
        return self._manager

    def get(self) -> SystemManager | None:
        """The present connection. Connects first, if there is none and `RETRY_SECONDS` have passed."""
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
        """Close the connection after an error. `get` tries again after `RETRY_SECONDS`."""
        self.close()
        self._manager = None
        self._retry_at = self._monotonic() + RETRY_SECONDS
        if self._conditions.begin(_KEY, "", self._monotonic()):
            _log.error("no restarts until systemd can be reached", reason=describe(error))

    def close(self) -> None:
        """Close the connection. Threads that wait for a job wake up, and their calls fail."""
        if self._manager is not None:
            self._manager.close()
