# SPDX-License-Identifier: MIT
"""A module's operational messages, which structlog writes as `agent.log` has set it up.

structlog is loaded with the first message: it loads rich and asyncio, which takes a fifth of a short verb's
time, and most verbs have nothing to say.
"""

from __future__ import annotations


class Messages:
    """Writes messages: what happened, in words, and values by name."""

    def info(self, event: str, **values: object) -> None:
        """What an operator may want to know."""
        self._write("info", event, values)

    def warning(self, event: str, **values: object) -> None:
        """What an operator should look at."""
        self._write("warning", event, values)

    def error(self, event: str, **values: object) -> None:
        """What failed."""
        self._write("error", event, values)

    @staticmethod
    def _write(level: str, event: str, values: dict[str, object]) -> None:
        import structlog  # noqa: PLC0415 (see above)

        getattr(structlog.get_logger(), level)(event, **values)
