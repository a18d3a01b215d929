# SPDX-License-Identifier: MIT
"""The agent, with a note of when it is where: the clock at the begin and end of some functions.

A line each of CLOCK_MONOTONIC in nanoseconds, the thread, and the place; kept in memory until SIGUSR1 has
them written to the file that `STAGES` names. Run by the agent's own Python.
"""

from __future__ import annotations

import functools
import importlib
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, "/usr/lib/credferry")

if TYPE_CHECKING:
    from collections.abc import Callable

PLACES = (
    ("agent.watch", "_Handler.on_any_event", "the event"),
    ("agent.service", "Service._turn", "a turn of the loop"),
    ("agent.observe", "Observer.look_at", "a look"),
    ("agent.source", "take", "reading the source"),
    ("agent.sealer", "Sealer.seal_due", "sealing"),
    ("agent.store", "Store.write", "writing the generation"),
    ("agent.store", "Store.record_attempt", "noting the restart"),
    ("agent.journal", "Audit.record", "an audit record"),
    ("agent.rollout", "Rollout.restart", "the restart's thread"),
    ("agent.systemd", "SystemBus.unit", "asking for a unit"),
    ("agent.systemd", "SystemBus.units", "asking for all units"),
    ("agent.systemd", "SystemBus.try_restart", "the restart's call"),
)
_lines: list[str] = []


def _noted(function: Callable[..., Any], place: str) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401 (whatever it takes)
        thread, clock = threading.get_native_id(), time.monotonic_ns
        _lines.append(f"{clock()} {thread} {place} begins")
        try:
            return function(*arguments, **named)
        finally:
            _lines.append(f"{clock()} {thread} {place} ends")

    return call


def _write(*_: object) -> None:
    lines = _lines[:]
    _lines.clear()
    path = Path(os.environ["STAGES"])
    path.with_suffix(".new").write_text("\n".join(lines), encoding="utf-8")
    path.with_suffix(".new").rename(path)


def main() -> None:
    """Entry point."""
    for module, name, place in PLACES:
        holder: Any = importlib.import_module(module)
        *outer, last = name.split(".")
        for each in outer:
            holder = getattr(holder, each)
        setattr(holder, last, _noted(getattr(holder, last), place))
    signal.signal(signal.SIGUSR1, _write)
    from agent.cli import main as agent  # noqa: PLC0415 (with the notes in place)

    sys.argv[:] = ["credferry", "agent"]
    agent()


if __name__ == "__main__":
    main()
