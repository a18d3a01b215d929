# SPDX-License-Identifier: MIT
"""The task of the child beside cloud-hypervisor: made before the fork, so apart from the child's imports."""

from __future__ import annotations

import contextlib
import os
import select
import signal

from credferry.launcher import journal
from credferry.launcher.handoff import Stamp, write_stamp
from credferry.launcher.record import FrozenRecord

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from credferry.launcher.channels import Endpoint
    from credferry.launcher.handoff import Channel, Manifest, Secret
    from credferry.launcher.hypervisor.vmconfig import AddNet
    from credferry.launcher.spec.notify import Bridge

REFUSED_SIGNAL: Final = signal.SIGUSR2
"""Ends the VMM if a restart cannot help: ``RestartPreventExitStatus=SIGUSR2`` names this signal. No other
program here uses it. By default, it ends the process and leaves no core."""
FAILED_SIGNAL: Final = signal.SIGUSR1
"""Ends the VMM if a retry may succeed, for example after a busy tap device or before virtiofsd is up.
``Restart=`` applies, as it does if cloud-hypervisor itself ends with an error."""
_NO_INVOCATION: Final = "0" * 32
_INVOCATION_DIGITS: Final = 32


class Socket(FrozenRecord):
    """The VMM's API socket. ``listener`` is the PID that must have made it listen, or None if unknown."""

    path: str
    listener: int | None

    @classmethod
    def of(cls, endpoint: Endpoint | None) -> Socket | None:
        """The socket that this process listens at once it is the VMM, or that it has inherited."""
        if endpoint is None:
            return None
        if endpoint.path is not None:
            return cls(endpoint.path, os.getpid())
        assert endpoint.fd is not None  # noqa: S101 (one of the two)
        import socket  # noqa: PLC0415 (few VMs have such a socket)

        with socket.socket(fileno=os.dup(endpoint.fd)) as listening:
            return cls(str(listening.getsockname()), None)


class Boot(FrozenRecord):
    """The api channel's work. An answer that may hold part of ``values`` is not shown.

    ``confines``: ``vm.create`` opens the VM's files to confine the VM to them, and fails if one is missing.
    """

    body: Secret
    add_net: tuple[AddNet, ...]
    values: tuple[Secret, ...]
    confines: bool = False


class Task(FrozenRecord):
    """All that the child needs. The child writes ``notes`` to the journal once the VM runs.

    ``vmm`` is a pidfd of the VMM, and ``pid`` its PID.
    """

    manifest: Manifest
    stamp: Stamp
    runtime: str
    vmm: int
    pid: int
    events: int
    sink: int | None
    socket: Socket | None
    boot: Boot | None
    bridge: Bridge | None = None
    notes: tuple[str, ...] = ()

    def leave_stamp(self) -> None:
        """Write the stamp. It is only a hint to the agent: if this fails, the VM runs on, with a warning."""
        try:
            write_stamp(self.runtime, self.stamp)
        except OSError as error:
            journal.warn(
                self.manifest,
                f"the launcher could not report the start to the agent: {self.runtime}: {error.strerror}. "
                "The VM runs. Make room there, or correct RuntimeDirectory= of the unit",
            )

    def has_ended(self, milliseconds: float) -> bool:
        """Whether the VMM ends within this time."""
        poll = select.poll()
        poll.register(self.vmm, select.POLLIN)
        return bool(poll.poll(milliseconds))

    def send_signal(self, number: signal.Signals) -> None:
        """Send the VMM a signal, if it has not ended."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.vmm, number)

    def pass_on(self, events: bytes) -> None:
        """Write events to the given event monitor. A slow reader loses some, as with cloud-hypervisor."""
        if self.sink is not None:
            with contextlib.suppress(OSError):
                os.write(self.sink, events)


def stamp_of(manifest: Manifest, channel: Channel, other_oem_bytes: int, room: int) -> Stamp:
    """The stamp for the unit's present invocation."""
    invocation = os.environ.get("INVOCATION_ID", "")
    if len(invocation) != _INVOCATION_DIGITS or set(invocation) - set("0123456789abcdef"):
        invocation = _NO_INVOCATION
    return Stamp(
        vm=manifest.vm,
        generation=manifest.generation,
        digest=manifest.digest,
        run=manifest.run,
        invocation_id=invocation,
        channel=channel,
        other_oem_bytes=other_oem_bytes,
        room=room,
    )
