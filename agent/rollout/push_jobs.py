# SPDX-License-Identifier: MIT
"""Asks systemd to push to a VM's guest, waits for the end, and judges it by root's proof.

That systemd's job is done proves nothing: a start of a unit that is starting joins that start, which may
push an earlier generation. So the agent believes the copy of the manifest alone that root keeps of a push
that the guest has proved.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from credferry.agent.rollout.jobs import run_job
from credferry.agent.systemd.units import DONE, PUSH_UNIT
from credferry.launcher.errors import Exit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from credferry.agent.config.model import VmConfig
    from credferry.agent.reconcile.observer import Observer
    from credferry.agent.systemd.units import SystemManager, UnitState
    from credferry.launcher.handoff import Manifest

_JOINED_MAX: Final = 3
"""How often the agent asks again for a push, where its job has joined another one."""
_CREDENTIALS_FAILED: Final = 243
"""systemd's exit status for a unit whose credentials it could not set up (systemd.exec(5))."""


@dataclass(frozen=True, slots=True)
class Proved:
    """The guest has proved that it holds the generation."""


@dataclass(frozen=True, slots=True)
class Undone:
    """A unit in the guest failed with the new values, and the guest has put the old ones back."""

    reason: str
    is_certain: bool = True
    """Whether it is known that the guest holds what it held before."""
    is_passing: bool = False
    """Whether another push may succeed."""


@dataclass(frozen=True, slots=True)
class NotTaken:
    """The guest did not take the push, or did not prove that it did."""

    reason: str
    is_certain: bool = True
    is_passing: bool = False


@dataclass(frozen=True, slots=True)
class Restarted:
    """The VM was stopped or started again meanwhile. Its start got what was sealed then."""


PushEnding = Proved | Undone | NotTaken | Restarted

_ENDINGS: Final[Mapping[int, tuple[str, bool, bool]]] = {
    Exit.USAGE: ("the push unit has arguments that the launcher does not know", True, False),
    Exit.CREDENTIALS: ("its sealed generation cannot be pushed", True, False),
    Exit.HYPERVISOR: ("its vsock socket cannot be used, or is not the VM's own", True, False),
    Exit.LATER: ("nobody in its guest takes a push", True, True),
    Exit.GUEST: ("its guest refused the push", True, False),
    Exit.UNKNOWN: ("its guest did not prove that it took the push", False, True),
    _CREDENTIALS_FAILED: ("PID 1 could not open the generation for the push unit", True, False),
}
"""By exit status: what happened, if the guest surely holds what it held, and if another push may succeed."""


@dataclass(frozen=True, slots=True)
class PushJobs:
    """systemd's jobs of the units that push."""

    observer: Observer

    def run(self, vm: VmConfig, manifest: Manifest, invocation: str, manager: SystemManager) -> PushEnding:
        """Push the current generation, which has this manifest, to an invocation of the VM's unit.

        Raises `BusError`.
        """
        name = PUSH_UNIT.format(vm=vm.name)
        for _ in range(_JOINED_MAX):
            result, reason = run_job(manager.start, name, manager, name)
            # Asked after the push: it then belongs to this invocation, as the VM was up all the time.
            vm_unit = manager.unit(vm.unit)
            if not vm_unit.is_active or vm_unit.invocation_id != invocation:
                return Restarted()
            if result != DONE:
                return _failed(manager.unit(name), result, reason)
            if self.observer.starts.is_proof(vm, manifest):
                return Proved()
        return NotTaken(f"{name} left no proof of generation {manifest.generation}", False, is_passing=True)


def _failed(unit: UnitState, result: str, reason: str) -> PushEnding:
    see = f": see journalctl -u {unit.name}"
    see_guest = f"{see}; in the guest, see journalctl -u 'credferry-receive@*'"
    if not result:  # systemd refused the job
        return NotTaken(reason)
    if result != "failed" or unit.result != "exit-code":
        return NotTaken(reason + see, False, is_passing=True)
    if unit.exit_status == Exit.UNDONE:
        return Undone(
            "a unit in its guest failed with the new values, and has its old ones back" + see_guest
        )
    what, is_certain, is_passing = _ENDINGS.get(
        unit.exit_status, (f"{unit.name} ended with status {unit.exit_status}", False, False)
    )
    is_of_guest = unit.exit_status in {Exit.GUEST, Exit.UNKNOWN}
    return NotTaken(what + (see_guest if is_of_guest else see), is_certain, is_passing)
