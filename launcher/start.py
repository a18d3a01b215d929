# SPDX-License-Identifier: MIT
"""The start: open a pipe, fork a child, and exec cloud-hypervisor.

The launcher's process is the unit's main process, and an exec does not change that. Descriptors from 3 up,
which microvm.nix opens for macvtap, pass to cloud-hypervisor unchanged.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal

from credferry.launcher import hardening, journal
from credferry.launcher.errors import Exit, failed, usage
from credferry.launcher.handoff import STAMP_FILE, Kind
from credferry.launcher.task import FAILED_SIGNAL, Boot, Socket, Task, stamp_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final, NoReturn

    from credferry.launcher.channels import Endpoint
    from credferry.launcher.credentials import Delivered
    from credferry.launcher.plan import Initrd, Plan
    from credferry.launcher.spec.notify import Bridge

_EVENTS_FROM: Final = 100
"""Lowest number for the event pipe. A command line may name lower ones."""


def events_fd_number() -> int:
    """The descriptor number that the event pipe would get now."""
    probe = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    try:
        number = fcntl.fcntl(probe, fcntl.F_DUPFD_CLOEXEC, _EVENTS_FROM)
        os.close(number)
        return number
    finally:
        os.close(probe)


def start(plan: Plan, delivered: Delivered, real: str, runtime: str) -> NoReturn:
    """Become cloud-hypervisor. Raises `LaunchError` if that fails."""
    _check_descriptors(plan)
    if plan.initrd is not None:
        _open_initrd(plan.initrd, runtime)
    for path in plan.sockets:
        _remove_socket(path)
    if plan.vsock is not None:
        _note_vsock(plan.vsock, delivered, runtime)
    bridge = _open_bridge(plan.notify)
    sink = _open_sink(plan.events)
    stamp = stamp_of(delivered.manifest, plan.channel, plan.other_oem_bytes, plan.start.room)
    with contextlib.suppress(OSError):
        os.unlink(os.path.join(runtime, STAMP_FILE))  # an earlier run's, if the unit preserves the directory
    if plan.start.private_api and plan.start.api is not None and plan.start.api.path is not None:
        _remove_socket(plan.start.api.path)
    reading, writing = os.pipe2(os.O_CLOEXEC)
    given = fcntl.fcntl(writing, fcntl.F_DUPFD, _EVENTS_FROM)
    os.close(writing)
    vmm = os.pidfd_open(os.getpid())
    boot = None
    if plan.start.body is not None:
        values = tuple(c.value for c in delivered.credentials if c.kind is not Kind.TEXT)
        confines = bool((plan.start.document or {}).get("landlock_enable"))
        boot = Boot(plan.start.body, plan.start.add_net, values, confines)
    task = Task(
        manifest=delivered.manifest,
        stamp=stamp,
        runtime=runtime,
        vmm=vmm,
        pid=os.getpid(),
        events=reading,
        sink=sink,
        socket=Socket.of(plan.start.api),
        boot=boot,
        bridge=bridge,
        notes=plan.notes,
    )
    if os.fork() == 0:
        _be_child(task)
    # Python ignores these two signals, and cloud-hypervisor would inherit that through the exec.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    try:
        os.execv(real, [plan.argv0, *plan.start.words, "--event-monitor", f"fd={given}"])  # noqa: S606 (no shell is wanted)
    except OSError as error:
        raise failed(
            f"cannot start cloud-hypervisor: {real}",
            error,
            hint="correct --real",
            status=Exit.HYPERVISOR,
        ) from None


def _note_vsock(path: str, delivered: Delivered, runtime: str) -> None:
    """Note where a push can reach the guest. The VM starts without the note, too, with a warning."""
    from credferry.launcher.push import vsock  # noqa: PLC0415 (few VMs need it)

    try:
        vsock.note(path, runtime)
    except OSError as error:
        journal.warn(
            delivered.manifest,
            f"the vsock socket could not be noted in {runtime}: {error.strerror}. The VM starts, but cannot "
            "take a push until its next start. Make room there, or correct RuntimeDirectory= of the unit",
        )


def _remove_socket(path: str) -> None:
    """Remove a socket that an earlier run left. Raises `LaunchError`."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise failed(
            f"cannot remove {path}, which an earlier run left",
            error,
            hint="the VM's user must own its directory, and nothing else may use this name",
            status=Exit.USAGE,
        ) from None


def _be_child(task: Task) -> NoReturn:
    """Run as the child. Never returns, and never prints an exception's text: it may hold a value."""
    try:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            # systemd signals the whole unit. The child ends only when the VMM ends.
            signal.signal(number, signal.SIG_IGN)
        _keep_only(task)
        hardening.hide()
        from credferry.launcher import (  # noqa: PLC0415 (while cloud-hypervisor starts, and not before)
            supervise,
        )

        supervise.run(task)
    except BaseException as error:  # noqa: BLE001 (any exception's text may hold a value)
        with contextlib.suppress(BaseException):
            if task.boot is not None:
                signal.pidfd_send_signal(task.vmm, FAILED_SIGNAL)
            said = (
                "internal error"
                if task.boot is not None
                else "the launcher will not notice a reboot of the guest"
            )
            os.write(2, f"credferry-launch: {said}: {type(error).__name__}\n".encode())
    finally:
        os._exit(0)


def _keep_only(task: Task) -> None:
    """Close what the child must not hold: the VMM's end of the pipe, standard input, tap devices."""
    keep = {task.vmm, task.events, task.sink}
    if task.bridge is not None:
        keep |= task.bridge.descriptors
    if task.boot is not None:
        keep.update(descriptor for net in task.boot.add_net for descriptor in net.fds)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in keep:  # noqa: PLR2004 (standard error)
            with contextlib.suppress(OSError):
                os.close(int(name))
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.close(null)


def _open_initrd(extended: Initrd, runtime: str) -> None:
    """Open the extended initramfs under the descriptor number that the command line names."""
    from credferry.launcher import initrd  # noqa: PLC0415 (few VMs need it)

    with contextlib.suppress(OSError):
        os.fstat(initrd.DESCRIPTOR)
        raise usage(
            f"descriptor {initrd.DESCRIPTOR} is open, but the launcher needs it for the initrd",
            "open this file with a lower number",
        )
    copy = initrd.attach(extended.initramfs, extended.credentials, runtime)
    os.dup2(copy, initrd.DESCRIPTOR)
    os.close(copy)


def _open_bridge(path: str | None) -> Bridge | None:
    """The bridge for the guest's messages, if the unit has a notification socket. Raises `LaunchError`."""
    target = os.environ.get("NOTIFY_SOCKET")
    if path is None or not target:
        return None
    from credferry.launcher.spec import notify  # noqa: PLC0415 (VMs from a spec only)

    try:
        return notify.Bridge(notify.listen(path), target)
    except OSError as error:
        raise failed(
            f"cannot listen at {path}",
            error,
            hint="the VM's user must own the working directory",
            status=Exit.USAGE,
        ) from None


def _check_descriptors(plan: Plan) -> None:
    for net in plan.start.add_net:
        for descriptor in net.fds:
            _check_descriptor(descriptor, "--net")
    if plan.start.api is not None and plan.start.api.fd is not None:
        _check_descriptor(plan.start.api.fd, "--api-socket")


def _check_descriptor(descriptor: int, option: str) -> None:
    try:
        os.fstat(descriptor)
    except (OSError, OverflowError):  # a command line may name any number
        descriptor = -1
    if descriptor <= 2:  # noqa: PLR2004 (standard error)
        raise usage(f"{option}: a descriptor is not open", "open it before cloud-hypervisor is started")


def _open_sink(events: Endpoint | None) -> int | None:
    """Open the event monitor that the command line names: the VMM writes to a pipe, and the child copies.

    This function opens it as cloud-hypervisor does. The VMM does not inherit it, so the reader sees the end
    of the stream when the child ends. Raises `LaunchError`.
    """
    if events is None:
        return None
    try:
        if events.fd is not None:
            sink = events.fd
            os.set_inheritable(sink, False)
        else:
            assert events.path is not None  # noqa: S101 (one of the two)
            sink = os.open(events.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        os.set_blocking(sink, False)
    except OSError as error:
        raise failed(
            "cannot write to --event-monitor",
            error,
            hint="correct its path or descriptor",
            status=Exit.USAGE,
        ) from None
    return sink
