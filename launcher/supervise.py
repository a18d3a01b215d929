# SPDX-License-Identifier: MIT
"""The launcher's child: creates and boots the VM over the API, then watches for guest reboots.

cloud-hypervisor is the unit's main process. So the launcher becomes cloud-hypervisor, and this child talks
to it. The child ends when the VMM ends: the event pipe closes, and the VMM's pidfd becomes readable.

After a reboot from inside, cloud-hypervisor would give the guest the strings of its first boot again, since
it keeps the configuration (vmm/src/lib.rs, `vm_reboot`). So the child ends the VMM when the guest reboots,
and systemd starts the VM with fresh strings.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time

from credferry.launcher import journal
from credferry.launcher.handoff import MESSAGE_ID_GUEST_REBOOT, MESSAGE_ID_LAUNCH_REFUSED
from credferry.launcher.hypervisor import api
from credferry.launcher.hypervisor.events import EventParser, HypervisorEvent
from credferry.launcher.task import FAILED_SIGNAL, REFUSED_SIGNAL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from socket import socket
    from typing import Final

    from credferry.launcher.hypervisor.vmconfig import AddNet
    from credferry.launcher.task import Boot, Task

_BOOT: Final = "vm.boot"
_SOCKET_SECONDS: Final = 30.0
_CREATE_SECONDS: Final = 15.0
_BOOT_SECONDS: Final = 140.0
_END_SECONDS: Final = 3.0
_RETRY_MS: Final = 1
_RETRY_MS_MAX: Final = 100
_RETRY_LONGER: Final = 1.25
"""Factor between two pauses. So a start waits at most a quarter longer than it has to."""
_ENDED_MS: Final = 5
"""Milliseconds to wait after a broken connection: the VMM may be ending."""
_TROUBLE_SECONDS: Final = 1.0
"""Pause before a retry of what the kernel refused."""
_REBOOTING: Final = HypervisorEvent("vm", "rebooting")
_MESSAGE_MAX: Final = 300
_CHUNK: Final = 64 << 10


class _RefusedError(Exception):
    """A retry cannot start the VM either. The text may be shown."""


class _FailedError(Exception):
    """This start failed, but a retry may succeed. The text may be shown."""


class _GoneError(Exception):
    """The VMM ended by itself."""


def run(task: Task) -> None:
    """Do all of the child's work. Raises nothing once the VM runs, and never an error that holds a value."""
    if task.boot is None or _is_booted(task, task.boot):
        _watch(task)


def _is_booted(task: Task, boot: Boot) -> bool:
    """Boot the VM. If that fails, report why, and end the VMM with the signal that says if a retry helps."""
    try:
        _boot(task, boot)
    except _GoneError:
        _say(task, "cloud-hypervisor ended before the VM was started", "see what it said before this")
    except _RefusedError as error:
        _say(task, str(error), "correct the VM's configuration, then start the unit again")
        task.send_signal(REFUSED_SIGNAL)
    except _FailedError as error:
        _say(task, str(error), "if this does not go away without help, correct what it names")
        task.send_signal(FAILED_SIGNAL)
    else:
        with _Tolerate(task):
            task.leave_stamp()
            journal.record_launch(task.manifest)
            for note in task.notes:
                journal.warn(task.manifest, note)
        return True
    return False


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


def _boot(task: Task, boot: Boot) -> None:
    _request(task, boot, "vm.create", _CREATE_SECONDS, boot.body.reveal())
    for net in boot.add_net:
        _add_net(task, boot, net)
    _request(task, boot, _BOOT, _BOOT_SECONDS)


def _add_net(task: Task, boot: Boot, net: AddNet) -> None:
    body = json.dumps(net.config, ensure_ascii=False, separators=(",", ":")).encode()
    _request(task, boot, "vm.add-net", _CREATE_SECONDS, body, net.fds)
    for descriptor in net.fds:
        os.close(descriptor)


def _request(  # noqa: PLR0917 (the parts of one request)
    task: Task, boot: Boot, endpoint: str, seconds: float, body: bytes = b"", fds: tuple[int, ...] = ()
) -> None:
    connection = _connect(task, time.monotonic() + _SOCKET_SECONDS)
    try:
        answer = api.put(connection, endpoint, deadline=time.monotonic() + seconds, body=body, fds=fds)
    except api.ApiError as error:
        if task.has_ended(_ENDED_MS):
            raise _GoneError from None
        raise _FailedError(f"cloud-hypervisor did not answer: {error}") from None
    if not answer.good:
        said = f": {_printable(answer.body)}" if boot.quotable else ""
        # Only vm.boot touches the host's devices, files and sockets: a retry of it may succeed. Earlier
        # requests fail only because of their form, unless vm.create confines the VM to its files.
        touches = endpoint == _BOOT or boot.confines
        refused = _FailedError if touches else _RefusedError
        raise refused(f"cloud-hypervisor refused {endpoint} with status {answer.status}{said}")


def _connect(task: Task, deadline: float) -> socket:
    """A connection to this VMM's own socket, checked so that no earlier listener gets the secrets."""
    assert task.socket is not None  # noqa: S101 (the api channel always has one)
    problem = "no process listens there"
    pause: float = _RETRY_MS
    while time.monotonic() < deadline:
        try:
            connection = api.connect(task.socket.path, deadline)
        except OSError as error:
            problem = error.strerror or str(type(error).__name__)
        else:
            if task.socket.listener in {None, api.listener_pid(connection)}:
                return connection
            connection.close()
            problem = "another process listens there"
        if task.has_ended(pause):
            raise _GoneError
        pause = min(pause * _RETRY_LONGER, _RETRY_MS_MAX)
    raise _FailedError(f"cloud-hypervisor's API socket {task.socket.path}: {problem}")


def _watch(task: Task) -> None:
    """Watch the VMM until it ends. End it when its guest reboots. Raises nothing."""
    parser = EventParser()
    has_rebooted = False
    guard = _Tolerate(task)
    while True:
        with guard:
            if has_rebooted:
                _end(task)
                return
            data = _read(task)
            if not data:
                return
            has_rebooted = _REBOOTING in parser.feed(data)
            task.pass_on(data)
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


def _end(task: Task) -> None:
    """End the VMM: over the API if possible, then with SIGTERM, then with SIGKILL."""
    if task.socket is not None:
        deadline = time.monotonic() + _END_SECONDS
        with contextlib.suppress(OSError, api.ApiError):
            api.put(api.connect(task.socket.path, deadline), "vmm.shutdown", deadline=deadline)
            if task.has_ended(_END_SECONDS * 1000):
                return
    for number in (signal.SIGTERM, signal.SIGKILL):
        task.send_signal(number)
        if task.has_ended(_END_SECONDS * 1000):
            return


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


def _printable(body: bytes) -> str:
    text = body[:_MESSAGE_MAX].decode(errors="replace")
    return "".join(char if char.isprintable() else " " for char in text)
