# SPDX-License-Identifier: MIT
"""Units of the operator around a restart: one before it, one after it, and one if a rollout fails.

PID 1 runs them with their own rights. That the unit after a restart is still to run is on disk before the
unit before it begins. So a crash of the agent never leaves a VM out of service: while the record is there
and the VM is up, each check runs the unit after it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import msgspec

from credferry.agent.config.units import BeforeFails
from credferry.agent.errors import OrderError
from credferry.agent.messages import Messages
from credferry.agent.reconcile.desired import Desired
from credferry.agent.rollout.jobs import run_job
from credferry.agent.store.records import Outcome, Owed
from credferry.agent.systemd.units import DONE

if TYPE_CHECKING:
    from credferry.agent.config.model import VmConfig
    from credferry.agent.reconcile.decision import Decision
    from credferry.agent.reconcile.observed import Observed
    from credferry.agent.rollout.clock import Clock
    from credferry.agent.store.generations import Store
    from credferry.agent.systemd.units import SystemManager, UnitState

_log = Messages()


@dataclass(frozen=True, slots=True)
class Around:
    """Runs the units around restarts. The caller holds the VM's rollout lock."""

    store: Store
    clock: Clock

    def before(self, vm: VmConfig, unit: UnitState | None, manager: SystemManager) -> str:
        """Run the unit before a restart of a VM that is up. Returns why the restart must not follow.

        Raises `StoreError`, `BusError`.
        """
        units = vm.units
        if unit is None or not unit.is_active:
            return ""  # nobody uses a VM that is down
        if units.after:
            self.store.record_owed(vm.name, Owed(vm.unit_of(units.after)))
        reason = self._run(vm, units.before, manager)
        return reason if units.before_fails is BeforeFails.WAIT else ""

    def require(self, vm: VmConfig, unit: UnitState | None, manager: SystemManager) -> None:
        """The same for a rollback. Raises `OrderError` if it must not follow, `StoreError`, `BusError`."""
        if reason := self.before(vm, unit, manager):
            self.failed(vm, manager)
            hint = f"see: journalctl -u {vm.unit_of(vm.units.before)}"
            raise OrderError("NotReady", f"{vm.name}: not rolled back: {reason}", hint=hint)

    def after(self, vm: VmConfig, manager: SystemManager) -> str:
        """Run the unit after a restart, if it is still to run. Returns why it failed; a later check retries.

        Raises `StoreError`, `BusError`.
        """
        owed = self.store.owed(vm.name)
        if owed is None:
            return ""
        reason = self._run(vm, owed.unit, manager)
        self.store.record_owed(
            vm.name,
            msgspec.structs.replace(owed, moment=self.clock.boot(), reason=reason) if reason else None,
        )
        return reason

    def failed(self, vm: VmConfig, manager: SystemManager) -> None:
        """Run the unit for a rollout that has failed or is put off. Raises `BusError`."""
        self._run(vm, vm.units.on_failure, manager)

    @staticmethod
    def _run(vm: VmConfig, template: str, manager: SystemManager) -> str:
        """Start a unit, if one is configured, and wait for its end. Returns why it failed."""
        if not template:
            return ""
        name = vm.unit_of(template)
        if manager.unit(name).is_active:
            reason = f"{name} is active already, so a start runs nothing: set RemainAfterExit=no in it"
        else:
            result, reason = run_job(manager.start, name, manager, name)
            if result == DONE:
                return ""
        _log.error("a unit around a restart failed", vm=vm.name, unit=name, reason=reason)
        return reason

    def hold_back(self, decision: Decision, now: Observed) -> tuple[Decision, tuple[str, float] | None]:
        """Wait for the next try of a unit that failed: of the unit after, or before a restart that is due.

        Returns the decision, which has `Decision.run_after` now, and why and how long a restart waits.
        """
        retry, owed, attempt = now.vm.units.retry_seconds, now.owed, now.attempt
        if owed is not None and now.unit is not None and now.unit.is_active and not now.unit.has_job:
            left = self._left(owed.moment, retry) if owed.reason else 0.0
            reasons = (*decision.reasons, f"after its restart: {owed.reason}") if owed.reason else ()
            decision = replace(
                decision,
                run_after=left <= 0,
                reasons=reasons or decision.reasons,
                wait_seconds=decision.wait_seconds or left,
            )
        if attempt is None or attempt.outcome is not Outcome.PUT_OFF:
            return decision, None
        if not isinstance(now.desired, Desired) or attempt.digest != now.desired.digest:
            return decision, None
        left = self._left(attempt.moment, retry)
        return decision, ((attempt.reason, left) if left > 0 else None)

    def _left(self, moment: float, retry: float) -> float:
        ago = self.clock.boot() - moment
        return retry - ago if ago >= 0 else 0.0  # a moment that has not come yet is of an earlier boot
