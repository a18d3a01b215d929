# SPDX-License-Identifier: MIT
"""The VM's vsock socket: how its path is noted at the VM's start, and a connection to the guest behind it.

cloud-hypervisor serves a guest's vsock ports at one AF_UNIX socket. The first line of a connection is
``CONNECT PORT``, and the answer is ``OK HOSTPORT``. If nobody listens in the guest, the connection is closed
without a word (virtio-devices/src/vsock/unix/muxer.rs).
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat

from credferry.launcher.errors import Exit, LaunchError, failed
from credferry.launcher.handoff import RUNTIME_PARENT, VSOCK_FILE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

PORT: Final = 900
"""The receiver's port in the guest. Only the guest's root can listen there."""
_NOTE_MAX: Final = 4096
"""Bytes: PATH_MAX."""
_PATH_MAX: Final = 107
"""Bytes of a socket's path (struct sockaddr_un), less its NUL."""


def note(path: str, runtime: str | os.PathLike[str]) -> None:
    """Note the path of the VM's vsock socket in the unit's runtime directory. Raises `OSError`."""
    place = os.path.join(runtime, VSOCK_FILE)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(place)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with os.fdopen(os.open(place, flags, 0o644), "wb") as file:
        file.write(os.fsencode(os.path.abspath(path)))


def noted(vm: str, run: str | os.PathLike[str]) -> str:
    """The path that the VM's launcher noted. Raises `LaunchError`.

    Another VM of the same user can write there too, so the path proves nothing: `peer.check` finds out who
    listens there.
    """
    place = os.path.join(run, RUNTIME_PARENT, vm, VSOCK_FILE)
    try:
        descriptor = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
            content = file.read(_NOTE_MAX + 1) if is_file else b""
    except FileNotFoundError:
        raise LaunchError(
            f"VM {vm} does not run, or it was started without a vsock device",
            hint="start the VM; if it runs, give it a vsock device (microvm.vsock.cid, or --vsock)",
            status=Exit.LATER,
        ) from None
    except OSError as error:
        raise failed(
            f"{place} cannot be read", error, hint="restart the VM, which writes it", status=Exit.HYPERVISOR
        ) from None
    if not content.startswith(b"/") or b"\0" in content or len(content) > _NOTE_MAX:
        raise LaunchError(
            f"{place} holds no path",
            hint="see who wrote it; restart the VM, which writes it anew",
            status=Exit.HYPERVISOR,
        )
    return os.fsdecode(content)


def connect(path: str, vm: str, seconds: float) -> socket.socket:
    """A connection to the socket at ``path``. Nothing is sent yet. Raises `LaunchError`."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    directory = -1
    try:
        connection.settimeout(seconds)
        if len(os.fsencode(path)) > _PATH_MAX:
            parent, name = os.path.split(path)
            directory = os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            connection.connect(f"/proc/self/fd/{directory}/{name}")
        else:
            connection.connect(path)
    except TimeoutError:
        connection.close()
        raise LaunchError(
            f"VM {vm} takes no connection at its vsock socket {path}",
            hint="try again; if it stays so, restart the VM",
            status=Exit.LATER,
        ) from None
    except OSError as error:
        connection.close()
        # Missing or without a listener: the guest is shutting down or has not booted.
        is_gone = isinstance(error, FileNotFoundError | ConnectionRefusedError)
        raise failed(
            f"VM {vm} cannot be reached at its vsock socket {path}",
            error,
            hint="see if the VM runs, then try again"
            if is_gone
            else "the push must run as the VM's user: correct User= of the push unit",
            status=Exit.LATER if is_gone else Exit.HYPERVISOR,
        ) from None
    finally:
        if directory >= 0:
            os.close(directory)
    return connection
