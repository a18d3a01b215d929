# SPDX-License-Identifier: MIT
"""Asks systemd to restart a VM, waits for the end, and judges it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from credferry.agent.errors import BusError
from credferry.agent.rollout.endings import Ending, Failed, Succeeded, judged
from credferry.agent.rollout.verdict import overdue, verdict
from credferry.agent.systemd.units import CANCELED, DEPENDENCY, DONE, as_left

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from credferry.agent.config.model import Config, VmConfig
    from credferry.agent.reconcile.observer import Observer
    from credferry.agent.systemd.units import SystemManager, UnitState
    from credferry.launcher.handoff import Manifest

_POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class RestartJobs:
    """systemd's restart jobs for VMs. Setting ``stop`` ends any wait early."""

    config: Config
    observer: Observer
    stop: threading.Event
    monotonic: Callable[[], float]

    def run(
        self,
        vm: VmConfig,
        manifest: Manifest,
        manager: SystemManager,
        unit: UnitState | None = None,
        *,
        again: bool,
    ) -> Ending:
        """Ask systemd for a restart, wait for it, and return how it ended."""
        unit = manager.unit(vm.unit) if unit is None else unit
        job = manager.try_restart if unit.is_active and not again else manager.restart_failed
        result, reason = run_job(job, vm.unit, manager, "systemd's job")
        if result not in {DONE, CANCELED}:
            return Failed(reason, is_left_down=result == DEPENDENCY)
        # If it was canceled, another job replaced it. That job may have the same effect.
        return self._wait(vm, manifest, manager, unit.invocation_id, result)

    def under_way(self, vm: VmConfig, manifest: Manifest, manager: SystemManager) -> Ending | None:
        """Wait for the end of a start on exactly these credentials, if one is under way; None otherwise."""
        unit = manager.unit(vm.unit)
        evidence = self.observer.starts.evidence(vm, unit)
        is_on_it = evidence is not None and evidence.digest == manifest.digest
        is_on_it = is_on_it and self.observer.starts.pushed(vm, unit) is None
        if not unit.is_active or unit.is_flapping or not is_on_it:
            return None
        return self._wait(vm, manifest, manager, "", DONE)

    def _wait(
        self, vm: VmConfig, manifest: Manifest, manager: SystemManager, before: str, result: str
    ) -> Ending:
        """Wait until a start has been reported or has failed. ``before`` is the invocation before it."""
        deadline = self.monotonic() + self.config.rollout.stamp_seconds
        unit = manager.unit(vm.unit)
        restarts = unit.restarts
        while (said := self._verdict(vm, unit, manifest, before, restarts)) is None:
            if self.stop.wait(_POLL_SECONDS):
                return Failed("the agent stopped before it knew the result")  # a later run judges it
            if self.monotonic() >= deadline:
                said = overdue(unit, before)
                break
            unit = manager.unit(vm.unit)
        return judged(said, result, unit, before) if said else Succeeded(unit)

    def wait_to_retry(
        self, vm: VmConfig, manifest: Manifest, manager: SystemManager, failed: Failed, number: int
    ) -> bool:
        """Pause after the failed attempt with this number, each time twice as long.

        Returns whether the VM still needs another attempt. False if the agent stops, if a job is queued, or
        if somebody stopped or started the VM.
        """
        if not self.pause(number):
            return False
        return failed.is_left_down or self._is_still_down(vm, manifest, manager)

    def pause(self, number: int) -> bool:
        """Pause after the failed attempt with this number. Returns False if the agent stops."""
        return not self.stop.wait(self.config.rollout.retry_seconds * 2 ** (number - 1))

    def _is_still_down(self, vm: VmConfig, manifest: Manifest, manager: SystemManager) -> bool:
        """Whether the VM still needs the restart. False if a job is queued or somebody stopped the VM."""
        unit = as_left(manager.unit(vm.unit), manager)
        if unit.has_job or unit.is_stopped:
            return False
        return not self.runs(vm, unit, manifest)

    def runs(self, vm: VmConfig, unit: UnitState, manifest: Manifest) -> bool:
        """Whether the VM is up and has exactly these credentials, by its start or by a push."""
        launched = self.observer.starts.launched(vm, unit)
        return unit.is_active and launched is not None and launched.digest == manifest.digest

    def _verdict(
        self, vm: VmConfig, unit: UnitState, manifest: Manifest, before: str, restarts: int
    ) -> str | None:
        evidence, hint = self.observer.starts.evidence(vm, unit), self.observer.starts.hint(vm, unit)
        return verdict(unit, evidence, hint, manifest, before, restarts)


def run_job(ask: Callable[[str], str], unit: str, manager: SystemManager, what: str) -> tuple[str, str]:
    """Run a systemd job; return systemd's result word and a failure reason made from it.

    The word is empty if systemd refused the job. Raises `BusError` if systemd cannot be reached.
    """
    try:
        result = ask(unit)
    except BusError as error:
        manager.unit(unit)  # raises too if systemd cannot be reached; otherwise it refused the job
        return "", str(error)
    return result, f"{what} ended with {result!r}"
