# SPDX-License-Identifier: MIT
"""The launcher's child: creates and boots the VM over the API, then watches for guest reboots.

cloud-hypervisor is the unit's main process. So the launcher becomes cloud-hypervisor, and this child talks
to it. The child ends when the VMM ends: the event pipe closes, and the VMM's pidfd becomes readable.

If cloud-hypervisor boots the VM from its command line, the child sees that in the events.

After a reboot from inside, cloud-hypervisor would give the guest the strings of its first boot again, since
it keeps the configuration (vmm/src/lib.rs, `vm_reboot`). So the child ends the VMM when the guest reboots,
and systemd starts the VM with fresh strings.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import time

from credferry.launcher import journal
from credferry.launcher.handoff import MESSAGE_ID_GUEST_REBOOT, MESSAGE_ID_LAUNCH_REFUSED
from credferry.launcher.hypervisor.events import EventParser, HypervisorEvent
from credferry.launcher.task import FAILED_SIGNAL, REFUSED_SIGNAL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from credferry.launcher.task import Boot, Task

_TROUBLE_SECONDS: Final = 1.0
"""Pause before a retry of what the kernel refused."""
_REBOOTING: Final = HypervisorEvent("vm", "rebooting")
_RUNS: Final = frozenset({HypervisorEvent("vm", "booted"), HypervisorEvent("vm", "restored")})
_ENDED: Final = "cloud-hypervisor ended before the VM was started"
_CHUNK: Final = 64 << 10


def run(task: Task) -> None:
    """Do all of the child's work. Raises nothing once the VM runs, and never an error that holds a value."""
    if task.boot is None:
        _watch(task, is_started=False)
    elif _is_booted(task, task.boot):
        _watch(task, is_started=True)


def _is_booted(task: Task, boot: Boot) -> bool:
    """Boot the VM. If that fails, report why, and end the VMM with the signal that says if a retry helps."""
    from credferry.launcher import booting  # noqa: PLC0415 (the command channel does not need it)

    try:
        booting.boot_vm(task, boot)
    except booting.GoneError:
        _say(task, _ENDED, "see what it said before this")
    except booting.RefusedError as error:
        _say(task, str(error), "correct the VM's configuration, then start the unit again")
        task.send_signal(REFUSED_SIGNAL)
    except booting.FailedError as error:
        _say(task, str(error), "if this does not go away without help, correct what it names")
        task.send_signal(FAILED_SIGNAL)
    else:
        with _Tolerate(task):
            _report(task)
        return True
    return False


def _report(task: Task) -> None:
    """Tell the agent and the journal that the VM runs."""
    task.leave_stamp()
    journal.record_launch(task.manifest)
    for note in task.notes:
        journal.warn(task.manifest, note)


class _Tolerate:
    """Reports the first failure and suppresses all: no failure of the launcher may end a running VM."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._is_told = False

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        if kind is not None and not self._is_told:
            self._is_told = True
            with contextlib.suppress(Exception):
                journal.warn(
                    self._task.manifest,
                    f"the launcher's child met {kind.__name__} and continues; the VM runs. Check the "
                    "host's memory and open files",
                )
        return kind is not None


def _watch(task: Task, *, is_started: bool) -> None:
    """Watch the VMM until it ends. Report its start, and end it when its guest reboots. Raises nothing."""
    parser = EventParser()
    has_rebooted = False
    guard = _Tolerate(task)
    while True:
        with guard:
            if has_rebooted:
                from credferry.launcher import ending  # noqa: PLC0415 (not on a VM's boot path)

                ending.end(task, parser)
                return
            data = _read(task)
            if not data:
                if not is_started:
                    _say(task, _ENDED, "see what it said before this")
                return
            events = parser.feed(data)
            has_rebooted = _REBOOTING in events
            task.pass_on(data)
            if not is_started and not _RUNS.isdisjoint(events):
                is_started = True
                _report(task)
            if has_rebooted:
                journal.send(
                    f"VM {task.manifest.vm} rebooted from inside: its hypervisor ends, so that the VM "
                    "starts with fresh values",
                    message_id=MESSAGE_ID_GUEST_REBOOT,
                    priority=journal.INFO,
                    extra=journal.fields(task.manifest),
                )
            continue
        time.sleep(_TROUBLE_SECONDS)


def _read(task: Task) -> bytes:
    """The next piece of the VMM's event stream, or empty bytes once the VMM has ended."""
    poll = select.poll()
    poll.register(task.events, select.POLLIN)
    poll.register(task.vmm, select.POLLIN)
    return os.read(task.events, _CHUNK) if task.events in _wait(task, poll) else b""


def _wait(task: Task, poll: select.poll) -> set[int]:
    """Wait until a VMM's descriptor is readable; pass the guest's messages on meanwhile."""
    own = {task.events, task.vmm}
    while True:
        theirs = task.bridge.wanted if task.bridge is not None else set()
        for descriptor in theirs:
            poll.register(descriptor, select.POLLIN)
        again = task.bridge.again_ms if task.bridge is not None else None
        ready = {descriptor for descriptor, _ in poll.poll(again)}
        for descriptor in theirs:
            poll.unregister(descriptor)
        if task.bridge is not None:
            task.bridge.serve(ready & theirs)
        if ready & own:
            return ready


def _say(task: Task, message: str, hint: str) -> None:
    with contextlib.suppress(OSError):
        sys.stderr.write(f"credferry-launch: {message}: {hint}\n")
        sys.stderr.flush()
    journal.send(
        f"VM {task.manifest.vm} was not started: {message}",
        message_id=MESSAGE_ID_LAUNCH_REFUSED,
        priority=journal.ERROR,
        extra=journal.fields(task.manifest),
    )
