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
    ("credferry.agent.source.watch", "_Handler.on_any_event", "the event"),
    ("credferry.agent.daemon.service", "Service._turn", "a turn of the loop"),
    ("credferry.agent.reconcile.observer", "Observer.look_at", "a look"),
    ("credferry.agent.source.snapshot", "take", "reading the source"),
    ("credferry.agent.reconcile.sealer", "Sealer.seal_due", "sealing"),
    ("credferry.agent.store.generations", "Store.write", "writing the generation"),
    ("credferry.agent.store.record_files", "RecordFiles.record_attempt", "noting the restart"),
    ("credferry.agent.audit.writer", "Audit.record", "an audit record"),
    ("credferry.agent.rollout.rollout", "Rollout.restart", "the restart's thread"),
    ("credferry.agent.systemd.manager", "SystemBus.unit", "asking for a unit"),
    ("credferry.agent.systemd.manager", "SystemBus.units", "asking for all units"),
    ("credferry.agent.systemd.manager", "SystemBus.try_restart", "the restart's call"),
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
    from credferry.agent.cli import main as agent  # noqa: PLC0415 (with the notes in place)

    sys.argv[:] = ["credferry", "agent"]
    agent()


if __name__ == "__main__":
    main()
