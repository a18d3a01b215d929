# SPDX-License-Identifier: MIT
"""Operational messages, by structlog, to standard error: for people on a terminal, else for journald."""

from __future__ import annotations

import logging
import os
import select
import sys
import syslog
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from credferry.agent import logging_library
from credferry.agent.journald import reconnect_standard_error

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    import structlog

    from credferry.agent.hardening import Hardening


_TEXTS_MAX = 16
"""So many texts of a condition are remembered, the latest."""


@dataclass(slots=True)
class _Condition:
    texts: list[str]
    began: float
    times: int = 1


@dataclass(slots=True)
class Conditions:
    """Conditions that hold at present, by key. The caller passes ``now``: monotonic, in seconds."""

    _known: dict[str, _Condition] = field(default_factory=dict)

    def begin(self, key: str, text: str, now: float, *, of_several: bool = False) -> bool:
        """Note that a condition holds. Returns whether it, or its text, is new and must be reported.

        A text is new if it differs from the last one. With ``of_several``, each text is new once: several
        faults may last under one key, as where a disk fails for several VMs, and their texts take turns.
        """
        condition = self._known.get(key)
        known = condition.texts if condition is not None else []
        if condition is not None and text in (known if of_several else known[-1:]):
            condition.times += 1
            return False
        self._known[key] = _Condition([*known, text][-_TEXTS_MAX:], condition.began if condition else now)
        return True

    @property
    def keys(self) -> frozenset[str]:
        """Keys of the conditions that hold at present."""
        return frozenset(self._known)

    def end(self, key: str, now: float) -> str:
        """Note that a condition has ended. Returns how long it held, and how many checks saw it."""
        condition = self._known.pop(key, None)
        if condition is None:
            return ""
        checks = "1 failed check" if condition.times == 1 else f"{condition.times} failed checks"
        return f"{now - condition.began:.0f} s ({checks})"


_STANDARD_ERROR = 2
_CONNECT_AGAIN_SECONDS = 60.0
_PRIORITIES = {
    "debug": syslog.LOG_DEBUG,
    "info": syslog.LOG_INFO,
    "warning": syslog.LOG_WARNING,
    "error": syslog.LOG_ERR,
    "critical": syslog.LOG_CRIT,
}


def configure() -> None:
    """Load structlog and set it up, once for the process."""
    is_terminal = sys.stderr.isatty()
    logging_library.load(for_terminal=is_terminal)
    import structlog  # noqa: PLC0415 (see `logging_library`)

    render: list[structlog.typing.Processor]
    if is_terminal:
        # Without locals: a traceback must not show what a frame holds.
        formatter = structlog.dev.RichTracebackFormatter(show_locals=False)
        render = [structlog.dev.ConsoleRenderer(exception_formatter=formatter)]
    else:
        render = [_prefix_priority]
    structlog.configure(
        processors=[structlog.processors.add_log_level, structlog.contextvars.merge_contextvars, *render],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=_Logger,
        cache_logger_on_first_use=True,
    )


def hardened(done: Hardening) -> None:
    """Log which protection of the process's memory failed: as a warning, or for swap as debug."""
    import structlog  # noqa: PLC0415 (as in `configure`)

    logger = structlog.get_logger()
    if done.dumpable:
        logger.warning(
            "cannot protect this process's memory: other processes of its user may read it",
            reason=done.dumpable,
        )
    if done.core:
        logger.warning(
            "cannot make this process undumpable; only its core size limit prevents a core dump",
            reason=done.core,
        )
    if done.swap:
        logger.debug("cannot keep memory out of swap", reason=done.swap)


class _Logger:
    """Writes lines to standard error. A line that cannot be written is dropped; nothing waits for it."""

    def __init__(self) -> None:
        self._connect_again = 0.0

    def msg(self, message: str) -> None:
        """Write a line. If that fails, connect to the present journald and try once more."""
        line = f"{message}\n".encode(errors="backslashreplace")
        try:
            _write(line)
        except OSError:
            now = time.monotonic()
            if now < self._connect_again:
                return
            self._connect_again = now + _CONNECT_AGAIN_SECONDS  # an attempt may take 1 s if journald hangs
            if reconnect_standard_error("credferry"):
                self._connect_again = 0.0
                with suppress(OSError):
                    _write(line)

    debug = info = warning = error = critical = exception = msg


def _write(line: bytes) -> None:
    """Write to standard error. Drops the line if that is a full journald socket: the write would block."""
    if "JOURNAL_STREAM" in os.environ:
        poll = select.poll()
        poll.register(_STANDARD_ERROR, select.POLLOUT)
        # POLLOUT means that three quarters of the socket's buffer are free (Linux net/unix/af_unix.c).
        if not poll.poll(0):
            return
    os.write(_STANDARD_ERROR, line)


def _prefix_priority(_logger: object, _method: str, event: MutableMapping[str, Any]) -> str:
    """One line with journald's priority prefix (sd-daemon(3))."""
    priority = _PRIORITIES.get(event.pop("level", "info"), syslog.LOG_INFO)
    message = event.pop("event", "")
    pairs = "".join(f" {key}={value!r}" for key, value in sorted(event.items()))
    return f"<{priority}>{message}{pairs}"
