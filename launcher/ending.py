# SPDX-License-Identifier: MIT
"""Ends the VMM after its guest has rebooted, and waits as long as that takes.

cloud-hypervisor re-creates the VM first, and acts on SIGTERM and ``vmm.shutdown`` only afterwards
(vmm/src/lib.rs, `control_loop` and `vm_reboot`). For a VM with much memory or slow devices, this takes
minutes. As long as the VMM makes progress, it gets the time it needs: a VMM that is killed would leave the
unit with the result ``signal``, although the reboot went well.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import time

from credferry.launcher.hypervisor import api
from credferry.launcher.hypervisor.events import EventParser, HypervisorEvent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from credferry.launcher.task import Task

_STALLED_SECONDS: Final = 90.0
"""Seconds without progress after which the VMM hangs. It waits up to 60 s for a virtiofsd."""
_END_SECONDS: Final = 3.0
"""Seconds for the answer to a request to end, once the VM is re-created."""
_LOOK_MS: Final = 250
_REBOOTED: Final = HypervisorEvent("vm", "rebooted")
_CHUNK: Final = 64 << 10


class Patience:
    """Says when a VMM has made no progress for too long; pure.

    While it re-creates the VM, progress is that it uses the CPU. After that, the guest uses it, too, so only
    the time counts.
    """

    def __init__(self, now: float) -> None:
        self._since = now
        self._used: int | None = None
        self._is_recreated = False

    def is_over(self, now: float, used: int | None, *, recreated: bool) -> bool:
        """Whether to wait no longer. ``used`` is the CPU time that the VMM has used, or None if unknown."""
        if recreated != self._is_recreated or (not recreated and used != self._used):
            self._since = now
        self._is_recreated = recreated
        self._used = used
        return now - self._since >= _STALLED_SECONDS


def end(task: Task, parser: EventParser) -> None:
    """Tell the VMM to end, and wait until it has. If it hangs, kill it. ``parser`` has read its events.

    The API first: its server answers one request after the other, so whoever asked for the reboot over the
    API has an answer before the VMM ends.
    """
    with contextlib.ExitStack() as stack:
        is_told = not _ask(task, stack)
        if is_told:
            task.send_signal(signal.SIGTERM)
        patience = Patience(time.monotonic())
        poll = select.poll()
        poll.register(task.vmm, select.POLLIN)
        poll.register(task.events, select.POLLIN)
        recreated = math.inf
        while not patience.is_over(now := time.monotonic(), cpu_time(task.pid), recreated=recreated <= now):
            if not is_told and now - recreated >= _END_SECONDS:
                is_told = True
                task.send_signal(signal.SIGTERM)
            ready = {descriptor for descriptor, _ in poll.poll(_LOOK_MS)}
            if task.events in ready:
                data = os.read(task.events, _CHUNK)
                task.pass_on(data)
                if _REBOOTED in parser.feed(data):
                    recreated = time.monotonic()
                if not data:
                    poll.unregister(task.events)
            elif task.vmm in ready:
                return
        task.send_signal(signal.SIGKILL)


def _ask(task: Task, stack: contextlib.ExitStack) -> bool:
    """Whether the VMM has been asked over its API. The connection stays open until the stack ends."""
    if task.socket is None:
        return False
    try:
        connection = api.connect(task.socket.path, time.monotonic() + _END_SECONDS)
        stack.callback(connection.close)
        api.ask(connection, "vmm.shutdown")
    except (OSError, api.ApiError):
        return False
    return True


def cpu_time(pid: int) -> int | None:
    """Clock ticks that all threads of a process have used so far, or None if that cannot be read."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])  # utime and stime, proc(5)
    except (OSError, ValueError, IndexError):
        return None
