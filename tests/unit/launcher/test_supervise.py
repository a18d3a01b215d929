# SPDX-License-Identifier: MIT
"""The launcher's child once the VM runs: it watches on, whatever fails."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from credferry.launcher import ending, supervise
from credferry.launcher.handoff import STAMP_FILE, Channel, Delivery, Manifest, Stamp
from credferry.launcher.task import Task

from .conftest import VM, within

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def event(name: str) -> str:
    """One event of the VM."""
    return json.dumps({"timestamp": {}, "source": "vm", "event": name, "properties": None}, indent=2)


REBOOT = event("rebooting")


class Running:
    """A VMM that runs, and its child's task; ``say`` writes to the event monitor."""

    def __init__(self, runtime: Path, *command: str) -> None:
        self.vmm = subprocess.Popen(command or ("sleep", "infinity"), stdout=subprocess.PIPE)
        reading, self._writing = os.pipe()
        manifest = Manifest(VM, 1, "a" * 64, "b" * 32, Delivery(), ())
        stamp = Stamp(VM, 1, "a" * 64, "b" * 32, "c" * 32, Channel.COMMAND, 0)
        pidfd = os.pidfd_open(self.vmm.pid)
        self.task = Task(manifest, stamp, str(runtime), pidfd, self.vmm.pid, reading, None, None, None)

    def say(self, text: str) -> None:
        """One event."""
        os.write(self._writing, text.encode() + b"\n\n")

    def close(self) -> None:
        """Leave nothing behind."""
        self.vmm.kill()
        self.vmm.wait(within())
        assert self.vmm.stdout is not None
        self.vmm.stdout.close()
        for descriptor in (self._writing, self.task.vmm, self.task.events):
            os.close(descriptor)


@contextlib.contextmanager
def vmm(runtime: Path, work: str) -> Iterator[Running]:
    """A VMM whose guest has rebooted: it blocks SIGTERM while it works, as cloud-hypervisor does.

    ``busy`` is a CPU time that is well beyond the time after which a VMM hangs.
    """
    program = (
        "import signal, time; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]); "
        f"print(flush=True); busy = 1.5\n{work}\nsignal.sigwait([signal.SIGTERM])"
    )
    made = Running(runtime, sys.executable, "-IS", "-c", program)
    try:
        assert made.vmm.stdout is not None
        made.vmm.stdout.readline()
        yield made
    finally:
        made.close()


def wait_until(done: Callable[[], bool]) -> None:
    """Until it is so; a test's own deadline ends the wait."""
    deadline = time.monotonic() + within()
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.005)


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
    assert running.vmm.wait(within()) == -signal.SIGTERM  # by the reboot: without an API socket, so it ends
    assert [type(error).__name__ in message for message in told] == [True, False]
    assert "the VM runs" in told[0]
    assert "rebooted from inside" in told[1]
    assert "canary" not in str(told)


def test_a_vmm_that_ends_ends_the_watch(running: Running) -> None:
    """Also where its end of the pipe is still open in another process."""
    running.vmm.kill()
    supervise.run(running.task)


def test_the_start_is_reported_once_the_vm_runs(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the command channel: not when cloud-hypervisor starts, but when it has booted its VM, and once."""
    told: list[str] = []
    monkeypatch.setattr("credferry.launcher.journal.send", lambda message, **_: told.append(message))
    stamp = Path(running.task.runtime) / STAMP_FILE
    seen: list[bool] = []
    read = os.read

    def looking(descriptor: int, size: int) -> bytes:
        if descriptor == running.task.events:
            seen.append(stamp.exists())
        return read(descriptor, size)

    monkeypatch.setattr("credferry.launcher.supervise.os.read", looking)
    running.say(event("booting"))
    watch = threading.Thread(target=supervise.run, args=(running.task,))
    watch.start()
    wait_until(lambda: len(seen) == 1)
    running.say(event("booted"))
    wait_until(stamp.exists)
    running.say(event("booted"))
    running.vmm.kill()
    watch.join(within())
    assert seen[:2] == [False, False]
    assert told == [f"VM {VM} was started with generation 1"]


def test_a_vmm_that_ends_before_its_vm_runs_is_reported(
    running: Running, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the command channel, too: there is no stamp, and the journal says that the VM was not started."""
    told: list[str] = []
    monkeypatch.setattr("credferry.launcher.journal.send", lambda message, **_: told.append(message))
    running.say(event("booting"))
    running.vmm.kill()
    supervise.run(running.task)
    assert told == [f"VM {VM} was not started: cloud-hypervisor ended before the VM was started"]
    assert "see what it said before this" in capsys.readouterr().err
    assert not (Path(running.task.runtime) / STAMP_FILE).exists()


def test_a_vmm_that_still_recreates_its_vm_gets_the_time_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It acts on SIGTERM only afterwards, and takes longer than the launcher waits for one that hangs.

    Time is that which the VMM has worked: by another clock, it hangs where it has to wait for a processor.
    """
    monkeypatch.setattr(ending, "_STALLED_SECONDS", 0.6)
    with vmm(tmp_path, "while time.process_time() < busy: pass") as recreating:

        def worked() -> float:
            return (ending.cpu_time(recreating.vmm.pid) or 0) / os.sysconf("SC_CLK_TCK")

        monkeypatch.setattr(ending, "time", SimpleNamespace(monotonic=worked))
        recreating.say(REBOOT)
        supervise.run(recreating.task)
        assert recreating.vmm.wait(within()) == 0


def test_a_vmm_that_hangs_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else would end it, and the VM would stay down."""
    monkeypatch.setattr(ending, "_STALLED_SECONDS", 0.3)
    with vmm(tmp_path, "time.sleep(1000)") as hanging:
        hanging.say(REBOOT)
        supervise.run(hanging.task)
        assert hanging.vmm.wait(within()) == -signal.SIGKILL


def test_patience_ends_only_without_progress() -> None:
    """CPU time is progress while the VM is re-created. Afterwards the guest uses it: it counts no more."""
    patience = ending.Patience(0.0)
    stalled = ending._STALLED_SECONDS
    assert not patience.is_over(stalled + 1, 1, recreated=False)
    assert not patience.is_over(stalled * 2, 2, recreated=False)
    assert not patience.is_over(stalled * 3 - 1, 2, recreated=False)
    assert not patience.is_over(stalled * 3, 2, recreated=True)
    assert not patience.is_over(stalled * 4 - 1, 99, recreated=True)
    assert patience.is_over(stalled * 4, 100, recreated=True)


def test_patience_with_a_vmm_whose_work_cannot_be_seen() -> None:
    """Then only the time counts."""
    patience = ending.Patience(0.0)
    assert not patience.is_over(ending._STALLED_SECONDS - 1, None, recreated=False)
    assert patience.is_over(ending._STALLED_SECONDS, None, recreated=False)


def test_the_work_of_a_process_is_its_cpu_time() -> None:
    """Of all its threads, and unknown where the process is not seen."""
    before = ending.cpu_time(os.getpid())
    deadline = time.process_time() + 0.1
    while time.process_time() < deadline:
        pass
    after = ending.cpu_time(os.getpid())
    assert before is not None
    assert after is not None
    assert after > before
    assert ending.cpu_time(2**22 + 1) is None
