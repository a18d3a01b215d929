# SPDX-License-Identifier: MIT
"""A run of the tests by several workers: what they take first, and how they end when it is interrupted.

A pytest plugin. Each worker of pytest-xdist has a session of its own, and so a throwaway host of its own;
the files' order is that in which workers take them.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from types import FrameType

TESTS = Path(__file__).parents[1]
_TIERS = ("unit", "property", "host", "guest")

# Those that take a minute and more, the longest first: a worker that began one last would keep the others
# waiting.
LONGEST_FIRST = (
    "guest/test_receiver.py",
    "host/test_faults.py",
    "host/test_control.py",
    "host/test_docs.py",
    "host/test_crash.py",
    "guest/test_standin.py",
    "host/test_bad_input.py",
    "host/test_forger.py",
    "guest/test_demo.py",
    "host/test_rotation.py",
    "host/test_policy.py",
    "guest/test_main_job.py",
    "host/test_least_privilege.py",
    "host/test_canary.py",
    "property/test_model.py",
    "host/test_rollback.py",
    "guest/test_spec.py",
    "host/test_live.py",
    "host/test_package.py",
    "host/test_doctor.py",
    "guest/test_devices.py",
    "host/test_audit.py",
    "guest/test_initrd_channel.py",
    "host/test_soak.py",
)

_workers: list[int] = []


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In one process the quick tiers come first; among workers the longest files, then the slow tiers."""
    if _is_worker(config):
        items.sort(key=lambda item: (_place(item), -_rank(item)))
    else:
        items.sort(key=_rank)


def pytest_configure(config: pytest.Config) -> None:
    """Let SIGTERM end the run as Ctrl-C does: in order, with every fixture's end."""
    signal.signal(signal.SIGTERM, _interrupt)
    if _is_worker(config):
        signal.signal(signal.SIGINT, _interrupt_once)
        signal.signal(signal.SIGTERM, _interrupt_once)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodeready(node: Any) -> None:  # noqa: ANN401 (xdist's WorkerController, which may not be installed)
    """Remember a worker. Nothing public tells its PID."""
    _workers.append(node.gateway._io.popen.pid)


def pytest_keyboard_interrupt() -> None:
    """Interrupt the workers, too. xdist then waits for them, but would leave them to their tests for 5 s."""
    for worker in _workers:
        with suppress(ProcessLookupError):
            os.kill(worker, signal.SIGTERM)


def _is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


def _rank(item: pytest.Item) -> int:
    tier = _name(item).partition("/")[0]
    return _TIERS.index(tier) if tier in _TIERS else 0


def _place(item: pytest.Item) -> int:
    return LONGEST_FIRST.index(_name(item)) if _name(item) in LONGEST_FIRST else len(LONGEST_FIRST)


def _name(item: pytest.Item) -> str:
    """A test's file, relative to ``tests``; nothing for one that is elsewhere."""
    return item.path.relative_to(TESTS).as_posix() if item.path.is_relative_to(TESTS) else ""


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _interrupt_once(_number: int, _frame: FrameType | None) -> None:
    # Ctrl-C reaches every process of the terminal, and the run's own then tells its workers: the second
    # would end the fixtures' ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt
