# SPDX-License-Identifier: MIT
"""The launcher's child once the VM runs: it watches on, whatever fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from credferry.launcher import supervise
from credferry.launcher.handoff import Channel, Delivery, Manifest, Stamp
from credferry.launcher.task import Task

from .conftest import SECONDS, VM

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

REBOOT = json.dumps({"timestamp": {}, "source": "vm", "event": "rebooting", "properties": None}, indent=2)


class Running:
    """A VMM that runs, and its child's task; ``say`` writes to the event monitor."""

    def __init__(self, runtime: Path) -> None:
        self.vmm = subprocess.Popen(["sleep", "infinity"])
        reading, self._writing = os.pipe()
        manifest = Manifest(VM, 1, "a" * 64, "b" * 32, Delivery(), ())
        stamp = Stamp(VM, 1, "a" * 64, "b" * 32, "c" * 32, Channel.COMMAND, 0)
        pidfd = os.pidfd_open(self.vmm.pid)
        self.task = Task(manifest, stamp, str(runtime), pidfd, reading, None, None, None)

    def say(self, text: str) -> None:
        """One event."""
        os.write(self._writing, text.encode() + b"\n\n")

    def close(self) -> None:
        """Leave nothing behind."""
        self.vmm.kill()
        self.vmm.wait(SECONDS)
        for descriptor in (self._writing, self.task.vmm, self.task.events):
            os.close(descriptor)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    """A VM in the command channel."""
    made = Running(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), MemoryError(), RuntimeError("canary")])
def test_a_failure_while_watching_ends_neither_the_vm_nor_the_watch(
    running: Running, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told once, without its text, and the guest's reboot is noticed all the same.

    The kernel cannot be made to fail a read of this process alone, so the read is replaced here.
    """
    told: list[str] = []
    read, left = os.read, [error, error]

    def failing(descriptor: int, size: int) -> bytes:
        if left and descriptor == running.task.events:
            raise left.pop()
        return read(descriptor, size)

    def heard(message: str, **_: Any) -> None:  # noqa: ANN401 (a record's fields)
        told.append(message)

    monkeypatch.setattr("credferry.launcher.supervise.os.read", failing)
    monkeypatch.setattr(supervise, "_TROUBLE_SECONDS", 0.001)
    monkeypatch.setattr("credferry.launcher.journal.send", heard)
    running.say(REBOOT)
    supervise.run(running.task)
    assert running.vmm.wait(SECONDS) == -signal.SIGTERM  # by the reboot: without an API socket, so it ends
    assert [type(error).__name__ in message for message in told] == [True, False]
    assert "the VM runs" in told[0]
    assert "rebooted from inside" in told[1]
    assert "canary" not in str(told)


def test_a_vmm_that_ends_ends_the_watch(running: Running) -> None:
    """Also where its end of the pipe is still open in another process."""
    running.vmm.kill()
    supervise.run(running.task)
