# SPDX-License-Identifier: MIT
"""Creates and boots the VM over cloud-hypervisor's API: the api channel's part of the launcher's child."""

from __future__ import annotations

import os
import time

from credferry.launcher import plainjson
from credferry.launcher.hypervisor import api

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
_RETRY_SECONDS: Final = 0.0003
_RETRY_SECONDS_MAX: Final = 0.1
_RETRY_LONGER: Final = 1.25
"""Factor between two pauses. So a start waits at most a quarter longer than it has to."""
_ENDED_MS: Final = 5
"""Milliseconds to wait after a broken connection: the VMM may be ending."""
_CONFIGURATION: Final = frozenset({400, 409})
"""Statuses for a configuration that cannot work: releases after 53 answer so if they refuse it (vmm/src/api/
http/mod.rs, `api_error_status_code` of main, 2026-08). Older ones answer 500 for that, too."""


class RefusedError(Exception):
    """A retry cannot start the VM either. The text may be shown."""


class FailedError(Exception):
    """This start failed, but a retry may succeed. The text may be shown."""


class GoneError(Exception):
    """The VMM ended by itself."""


def boot_vm(task: Task, boot: Boot) -> None:
    """Create and boot the VM. Raises `RefusedError`, `FailedError` and `GoneError`."""
    _request(task, boot, "vm.create", _CREATE_SECONDS, boot.body.reveal())
    for net in boot.add_net:
        _add_net(task, boot, net)
    _request(task, boot, _BOOT, _BOOT_SECONDS)


def _add_net(task: Task, boot: Boot, net: AddNet) -> None:
    body = plainjson.dumps(net.config).encode()
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
            raise GoneError from None
        raise FailedError(f"cloud-hypervisor did not answer: {error}") from None
    if not answer.good:
        # Only vm.boot touches the host's devices, files and sockets: a retry of it may succeed. Earlier
        # requests fail only because of their form, unless vm.create confines the VM to its files.
        touches = endpoint == _BOOT or boot.confines
        refused = FailedError if touches and answer.status not in _CONFIGURATION else RefusedError
        raise refused(
            f"cloud-hypervisor refused {endpoint} with status {answer.status}{_said(answer.body, boot)}"
        )


def _said(body: bytes, boot: Boot) -> str:
    from credferry.launcher import quoting  # noqa: PLC0415 (only for a start that failed)

    text = quoting.shown(body, boot.values)
    if text is None:
        return (
            ". Its answer is not shown, as it may hold part of a credential. To see it, start "
            "cloud-hypervisor by hand with the unit's arguments"
        )
    return f": {text}" if text else ""


def _connect(task: Task, deadline: float) -> socket:
    """A connection to this VMM's own socket, checked so that no earlier listener gets the secrets."""
    assert task.socket is not None  # noqa: S101 (the api channel always has one)
    problem = "no process listens there"
    pause = _RETRY_SECONDS
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
        if task.has_ended(0):
            raise GoneError
        time.sleep(pause)  # a poll() would wait for whole milliseconds
        pause = min(pause * _RETRY_LONGER, _RETRY_SECONDS_MAX)
    raise FailedError(f"cloud-hypervisor's API socket {task.socket.path}: {problem}")
