# SPDX-License-Identifier: MIT
"""systemd of the model world: units that start on what PID 1 can open, and jobs that end in every result."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from credferry.agent.errors import BusError
from credferry.agent.systemd.units import FLAPS, UnitState
from credferry.launcher.errors import Exit
from credferry.launcher.handoff import EVIDENCE_PARENT, stamp_path
from tests.support.evidence import leave, leave_proof, remove_proof
from tests.support.world.guest import ModelGuest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from credferry.launcher.handoff import Manifest
    from tests.support.world.clock import ModelClock

_PUSH = "credferry-push@"
_CREDENTIALS_FAILED = 243
RESULTS = ("done", "canceled", "stopped", "timeout", "failed", "dependency", "skipped")
"""How a job can end; ``stopped`` is a job that an operator's stop has canceled."""


@dataclass(slots=True)
class ModelVm:
    """A VM's unit, and what the VM runs."""

    name: str
    active: str = "inactive"
    sub: str = "dead"
    result: str = "success"
    restarts: int = 0
    invocation: int = 0
    started: float = 0.0
    values: dict[str, bytes] = field(default_factory=dict)
    """What it runs, or ran last."""
    generation: int = 0
    good: dict[str, bytes] = field(default_factory=dict)
    """What it last ran well, as far as anybody has asked."""
    good_before: dict[str, bytes] | None = None
    """What it ran well before that, where the agent may not have been able to note that it is healthy."""
    by_hand: dict[str, bytes] = field(default_factory=dict)
    """What an operator last started it on."""
    is_lost: bool = False
    """Whether the key is gone that opened what it last ran well: then it has no way back."""
    is_down_by_agent: bool = False
    is_stopped_by_hand: bool = False
    """Whether an operator has stopped it since its last start, when it was up."""
    last_result: str = ""
    """How its last job has ended."""
    next_result: str = "done"
    is_out_of_service: bool = False
    """Whether the unit before a restart ran, and not yet the unit after it."""
    next_unit_result: str = "done"
    """How the next unit before or after a restart ends."""
    asked: int = 0
    """How often the agent has asked for a restart while it was up."""
    guest: ModelGuest = field(default_factory=ModelGuest)
    push_status: int = 0
    """Exit status of its last push."""
    push_result: str = "success"

    @property
    def is_up(self) -> bool:
        """Whether it runs."""
        return self.active == "active"

    @property
    def invocation_id(self) -> str:
        """Of its last start."""
        return f"{self.invocation:032x}" if self.invocation else ""

    @property
    def is_sick(self) -> bool:
        """Whether its health check would fail."""
        return self.name == "c" and b"sick" in self.values.values()


@dataclass(slots=True)
class ModelSystemd:
    """systemd as the agent knows it. ``effect`` is called at each call: there the agent can die."""

    vms: dict[str, ModelVm]
    clock: ModelClock
    runtime: Path
    opened: Callable[[str], tuple[Manifest, dict[str, bytes]] | None]
    """What PID 1 opens for a VM's start now; None where it cannot."""
    readable: Callable[[str], tuple[Manifest, dict[str, bytes]] | None]
    """The same, for a push."""
    effect: Callable[[], None]
    before_restart: Callable[[ModelVm], None]
    before_push: Callable[[ModelVm, Mapping[str, bytes]], None]
    after_push: Callable[[ModelVm, int], None]
    after_restart: Callable[[ModelVm, str], None]
    is_disturbed: Callable[[], bool]
    """Whether the agent may not be able to note what it learns now."""
    is_reachable: bool = True

    def unit(self, name: str) -> UnitState:
        """See `SystemManager`."""
        self._reach()
        if name.startswith(_PUSH):
            return self._push_unit(name)
        vm = self.vms.get(name.removeprefix("microvm@").removesuffix(".service"))
        if vm is None:
            return UnitState(name, "loaded", "inactive", "dead", "")
        return UnitState(
            name,
            "loaded",
            vm.active,
            vm.sub,
            vm.invocation_id,
            result=vm.result,
            active_seconds=self.clock.now - vm.started if vm.is_up else 0.0,
            restarts=vm.restarts,
        )

    def units(self, invocations: Mapping[str, str]) -> dict[str, UnitState]:
        """See `SystemManager`."""
        return {name: self.unit(name) for name in invocations}

    def try_restart(self, name: str) -> str:
        """See `SystemManager`."""
        self._reach()
        vm = self._vm(name)
        if not vm.is_up:
            return "done"
        vm.asked += 1
        return self._restart(vm)

    def restart_failed(self, name: str) -> str:
        """See `SystemManager`."""
        self._reach()
        return self._restart(self._vm(name))

    def _restart(self, vm: ModelVm) -> str:
        self.before_restart(vm)
        self.clock.pass_time(0.001)  # the start is later than an order that asked for it
        result, vm.next_result = vm.next_result, "done"
        match result:
            case "done":
                self.start_vm(vm)
            case "stopped":
                self.stop_vm(vm)
                result = "canceled"
            case "timeout" | "failed":
                self._down(vm)
                vm.invocation += 1
                vm.active, vm.sub, vm.result = "failed", "failed", "timeout"
            case "dependency":  # the stop was done, and the start waits for another unit, which fails
                self._down(vm)
        if result == "canceled" and not vm.is_up:
            vm.is_down_by_agent = False  # an operator wants no start of what is down
        vm.last_result = result
        if result in {"timeout", "failed", "dependency"} or (result == "done" and not vm.is_up):
            vm.is_down_by_agent = True
        self.after_restart(vm, result)
        self._reach()
        return "failed" if result == "done" and vm.active == "failed" else result

    def start(self, name: str) -> str:
        """See `SystemManager`: the agent starts units of health checks, and of pushes."""
        if name.startswith(_PUSH):
            self._pushed(name).guest.is_noted = False  # the agent has noted that it asks
        self._reach()
        if name.startswith(_PUSH):
            return self._push(self._pushed(name))
        if "drain@" in name:
            return self._serve(name)
        vm = self.vms[name.removeprefix("credferry-health@").removesuffix(".service")]
        assert vm.name == "c", "a check of a VM that has none"
        is_healthy = vm.is_up and not vm.is_sick
        if is_healthy:
            vm.good_before = vm.good if self.is_disturbed() else None
            vm.good, vm.is_lost = vm.values, False
        return "done" if is_healthy else "failed"

    def _serve(self, name: str) -> str:
        """A unit before or after a restart takes a VM out of service, or back. It may fail halfway."""
        verb, _, instance = name.removesuffix(".service").partition("@")
        vm = self.vms[instance]
        result, vm.next_unit_result = vm.next_unit_result, "done"
        if verb == "drain":
            vm.is_out_of_service = True
        elif result == "done":
            assert vm.is_up or self.is_disturbed(), f"{vm.name} is put into service though it is down"
            vm.is_out_of_service = False
        self._reach()
        return result

    def _push(self, vm: ModelVm) -> str:
        """PID 1 opens the current generation for the push unit, and the guest takes it, or does not."""
        result, vm.guest.next_result = vm.guest.next_result, "done"
        vm.push_status, vm.push_result = 0, "success"
        remove_proof(self.runtime, vm.name)
        if result == "joined":
            return "done"
        opened = self.readable(vm.name)
        if opened is None:
            status = _CREDENTIALS_FAILED
        elif not vm.is_up:
            status = int(Exit.LATER)
        else:
            manifest, values = opened
            self.before_push(vm, values)
            status = vm.guest.take(manifest, values, result)
            is_proved = status == 0 and result != "unproved"
            if is_proved:
                leave_proof(self.runtime, manifest)
            if vm.guest.held != vm.values:
                is_noted = is_proved and not self.is_disturbed()
                vm.good_before = None if is_noted else vm.good
                vm.values, vm.generation = dict(vm.guest.held), vm.guest.generation
                if vm.name != "c":
                    vm.good, vm.is_lost = vm.values, False
        if result == "rebooted":
            self.start_vm(vm)
            status = int(Exit.UNKNOWN)
        vm.push_status, vm.push_result = status, "exit-code" if status else "success"
        if result == "killed" and status:
            vm.push_status, vm.push_result = 9, "signal"
        vm.guest.is_trusted = status == 0 and result == "done"
        vm.guest.is_noted = vm.guest.is_trusted and not self.is_disturbed()
        self.after_push(vm, status)
        self._reach()
        return "failed" if status else "done"

    def ended(self, name: str) -> str:
        """See `SystemManager`."""
        self._reach()
        return self._vm(name).last_result

    def close(self) -> None:
        """See `SystemManager`."""

    def start_vm(self, vm: ModelVm) -> None:
        """The unit starts, or starts anew, on what PID 1 can open."""
        self._down(vm)
        vm.invocation += 1
        vm.is_down_by_agent = vm.is_stopped_by_hand = False
        vm.last_result = "done"
        opened = self.opened(vm.name)
        if opened is None or b"bad" in opened[1].values():
            vm.active, vm.sub, vm.result = "failed", "failed", "exit-code"
            return
        manifest, vm.values = opened
        vm.generation = manifest.generation
        if b"flap" in vm.values.values():
            vm.active, vm.sub, vm.result, vm.restarts = "activating", "auto-restart", "exit-code", FLAPS + 1
            return
        vm.active, vm.sub, vm.started = "active", "running", self.clock.now
        vm.guest.boot(manifest, vm.values)
        if vm.name != "c":
            vm.good, vm.is_lost = vm.values, False
        leave(self.runtime, manifest, vm.invocation_id)

    def stop_vm(self, vm: ModelVm) -> None:
        """An operator stops the VM. A stop of what is down already is no job, and leaves no record."""
        if vm.active != "inactive":
            vm.is_stopped_by_hand = True
            vm.last_result = "done"
        self._down(vm)
        vm.is_down_by_agent = False

    def _down(self, vm: ModelVm) -> None:
        """The unit stops: its runtime directory, and the evidence of its start, go with it."""
        vm.active, vm.sub, vm.result, vm.restarts = "inactive", "dead", "success", 0
        directory = stamp_path(vm.name, self.runtime).parent
        if directory.is_symlink():
            directory.unlink()
        shutil.rmtree(directory, ignore_errors=True)
        for evidence in (self.runtime / EVIDENCE_PARENT).glob(f"{vm.name}@*"):
            evidence.unlink()

    def _vm(self, unit: str) -> ModelVm:
        return self.vms[unit.removeprefix("microvm@").removesuffix(".service")]

    def _push_unit(self, name: str) -> UnitState:
        vm = self._pushed(name)
        state = "inactive" if vm.push_result == "success" else "failed"
        return UnitState(name, "loaded", state, state, "", result=vm.push_result, exit_status=vm.push_status)

    def _pushed(self, unit: str) -> ModelVm:
        return self.vms[unit.removeprefix(_PUSH).removesuffix(".service")]

    def _reach(self) -> None:
        self.effect()
        if not self.is_reachable:
            raise BusError("the bus is gone", hint="wait")
