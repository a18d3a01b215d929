# SPDX-License-Identifier: MIT
"""The agent's memory holds of structlog what it uses, and everything else can still be loaded."""

from __future__ import annotations

import subprocess
import sys

import pytest

_PRELUDE = "import sys; from credferry.agent.logging_library import load; "

_IN_A_COROUTINE = """
import asyncio, structlog
renderers = [structlog.processors.JSONRenderer()]
kind = structlog.make_filtering_bound_logger(0)
asyncio.run(structlog.wrap_logger(structlog.PrintLogger(), renderers, kind).ainfo("said"))
"""

_IN_FOUR_THREADS = """
import asyncio, threading
sys.setswitchinterval(1e-6)
start, found = threading.Barrier(4), []

def ask():
    start.wait()
    found.append(asyncio.get_running_loop)

threads = [threading.Thread(target=ask) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(len(found), len(set(map(id, found))))
"""


def said(script: str) -> str:
    """What a fresh interpreter prints for a script."""
    done = subprocess.run(
        [sys.executable, "-c", _PRELUDE + script],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_serves_terminals_and_coroutines_stays_out() -> None:
    """Without a terminal, structlog comes without rich, asyncio and ssl."""
    script = "load(for_terminal=False); print({'rich', 'asyncio.events', 'ssl'} & set(sys.modules))"
    assert said(script) == "set()\n"


def test_a_terminal_gets_rich() -> None:
    """On a terminal, tracebacks are drawn by rich."""
    assert said("load(for_terminal=True); print('rich.traceback' in sys.modules)") == "True\n"


@pytest.mark.parametrize(
    ("use", "result"),
    [
        ("import asyncio; print(asyncio.run(asyncio.sleep(0, 'slept')))", "slept"),
        ("import asyncio.events; print(asyncio.events.get_event_loop_policy is not None)", "True"),
        ("from asyncio import sleep; print(sleep.__name__)", "sleep"),
        ("import rich.console; print(rich.console.Console.__name__)", "Console"),
        (_IN_A_COROUTINE, '{"event": "said"}'),
        (_IN_FOUR_THREADS, "4 1"),
    ],
    ids=[
        *("a coroutine", "a part of asyncio", "a name from asyncio", "rich"),
        *("structlog in a coroutine", "threads at the same time"),
    ],
)
def test_who_uses_it_has_it(use: str, result: str) -> None:
    """Code that does use what was left out finds it as if nothing had happened, and once."""
    assert said(f"load(for_terminal=False); {use}") == f"{result}\n"
