# SPDX-License-Identifier: MIT
"""What the child beside cloud-hypervisor is told: made before the fork, so apart from what it imports."""

from __future__ import annotations

import signal

from credferry.launcher import journal
from credferry.launcher.handoff import write_stamp
from credferry.launcher.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from credferry.launcher.handoff import Manifest, Secret, Stamp
    from credferry.launcher.hypervisor.vmconfig import AddNet
    from credferry.launcher.spec.notify import Bridge

REFUSED_SIGNAL: Final = signal.SIGUSR2
"""Ends the VMM where starting it again cannot help, so that ``RestartPreventExitStatus=SIGUSR2`` can name
it: no program here uses it otherwise, it is deadly by default, and leaves no core."""
FAILED_SIGNAL: Final = signal.SIGUSR1
"""Ends it where the next try may do better: a tap device still busy, a virtiofsd not up yet. ``Restart=``
applies, as it would if cloud-hypervisor had been given its command line and had ended with an error."""


class Socket(Record):
    """The VMM's API socket; ``listener`` is who must have made it listen, if that is known."""

    path: str
    listener: int | None


class Boot(Record):
    """What the api channel has to do. ``quotable``: an answer's text cannot hold a secret.

    ``confines``: ``vm.create`` opens the VM's files to confine the VM to them, and fails for want of one.
    """

    body: Secret
    add_net: tuple[AddNet, ...]
    quotable: bool
    confines: bool = False


class Task(Record):
    """All that the child needs; descriptors are its own. ``notes`` are for the journal, once the VM runs."""

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
        """Leave the stamp. It is a hint to the agent, so a VM runs on where it cannot be written."""
        try:
            write_stamp(self.runtime, self.stamp)
        except OSError as error:
            journal.warn(
                self.manifest,
                f"the launcher could not report the start to the agent: {self.runtime}: {error.strerror}. "
                "The VM runs. Make room there, or correct RuntimeDirectory= of the unit",
            )
