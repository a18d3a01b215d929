# SPDX-License-Identifier: MIT
"""The task of the child beside cloud-hypervisor: made before the fork, so apart from the child's imports."""

from __future__ import annotations

import signal

from credferry.launcher import journal
from credferry.launcher.handoff import write_stamp
from credferry.launcher.record import FrozenRecord

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from credferry.launcher.handoff import Manifest, Secret, Stamp
    from credferry.launcher.hypervisor.vmconfig import AddNet
    from credferry.launcher.spec.notify import Bridge

REFUSED_SIGNAL: Final = signal.SIGUSR2
"""Ends the VMM if a restart cannot help: ``RestartPreventExitStatus=SIGUSR2`` names this signal. No other
program here uses it. By default, it ends the process and leaves no core."""
FAILED_SIGNAL: Final = signal.SIGUSR1
"""Ends the VMM if a retry may succeed, for example after a busy tap device or before virtiofsd is up.
``Restart=`` applies, as it does if cloud-hypervisor itself ends with an error."""


class Socket(FrozenRecord):
    """The VMM's API socket. ``listener`` is the PID that must have made it listen, or None if unknown."""

    path: str
    listener: int | None


class Boot(FrozenRecord):
    """The api channel's work. ``quotable``: an answer's text cannot hold a secret.

    ``confines``: ``vm.create`` opens the VM's files to confine the VM to them, and fails if one is missing.
    """

    body: Secret
    add_net: tuple[AddNet, ...]
    quotable: bool
    confines: bool = False


class Task(FrozenRecord):
    """All that the child needs. The child writes ``notes`` to the journal once the VM runs."""

    manifest: Manifest
    stamp: Stamp
    runtime: str
    vmm: int
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
