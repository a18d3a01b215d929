# SPDX-License-Identifier: MIT
"""Operational messages, by structlog, to standard error: for people on a terminal, else for journald."""

from __future__ import annotations

import logging
import sys
import syslog
from typing import TYPE_CHECKING, Any

import structlog

if TYPE_CHECKING:
    from collections.abc import MutableMapping

_PRIORITIES = {
    "debug": syslog.LOG_DEBUG,
    "info": syslog.LOG_INFO,
    "warning": syslog.LOG_WARNING,
    "error": syslog.LOG_ERR,
    "critical": syslog.LOG_CRIT,
}


def configure() -> None:
    """Set structlog up, once for the process."""
    render: list[structlog.typing.Processor]
    if sys.stderr.isatty():
        # Without locals: a traceback must not show what a frame holds.
        formatter = structlog.dev.RichTracebackFormatter(show_locals=False)
        render = [structlog.dev.ConsoleRenderer(exception_formatter=formatter)]
    else:
        render = [_prefix_priority]
    structlog.configure(
        processors=[structlog.processors.add_log_level, structlog.contextvars.merge_contextvars, *render],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def _prefix_priority(_logger: object, _method: str, event: MutableMapping[str, Any]) -> str:
    """One line with journald's priority prefix, as sd-daemon(3) has it."""
    priority = _PRIORITIES.get(event.pop("level", "info"), syslog.LOG_INFO)
    message = event.pop("event", "")
    pairs = "".join(f" {key}={value!r}" for key, value in sorted(event.items()))
    return f"<{priority}>{message}{pairs}"
