# SPDX-License-Identifier: MIT
"""When a due restart or push may begin: order, canaries, windows, rates, pauses, switches, fleet slots.

Each check computes this anew. So a clock jump, a configuration change or a restart of the agent costs at
most one more wait. Windows use the wall clock, rates the time since boot, all else the monotonic clock.
Limits do not apply to a VM that is down, or to a rollback. With ``live_windows = false``, windows and rates
do not apply to pushes.

One job: to hold back what is due.
"""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass, field, replace
from graphlib import TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING

from credferry.agent.config import calendar
from credferry.agent.errors import ConfigurationError, describe
from credferry.agent.reconcile.decision import Decision, State
from credferry.agent.rollout import nixos
from credferry.agent.rollout.around import Around
from credferry.agent.rollout.clock import Clock
from credferry.agent.rollout.pause import Pause
from credferry.agent.rollout.slots import NoSlots
from credferry.agent.store.records import Outcome, Way

if TYPE_CHECKING:
    from collections.abc import Mapping

    from credferry.agent.config.model import (
        Config,
        VmConfig,
    )
    from credferry.agent.reconcile.observed import Observed
    from credferry.agent.reconcile.observer import Look
    from credferry.agent.rollout.slots import Slots
    from credferry.agent.store.generations import Store


def restart_order(vms: Mapping[str, VmConfig]) -> list[str]:
    """All VMs in restart order: each VM follows those in its ``after``. Raises `graphlib.CycleError`."""
    return list(TopologicalSorter({name: vm.after for name, vm in vms.items()}).static_order())


HOUR = 3600.0
_SWITCH_LOOK_SECONDS = 1.0
_LONG = 3600.0
_WAIT_SECONDS_MIN = 0.05


@dataclass(frozen=True, slots=True)
class Wait:
    """Why a VM is not restarted yet, and after how many seconds to check again.

    The reason's text does not change while the wait lasts. ``state`` is the state to show: a VM that waits
    for its turn is shown as due.
    """

    reason: str
    seconds: float
    state: State = State.WAITING


@dataclass(slots=True)
class _Quiet:
    """Last published digest of a due VM, when it changed, and when the VM became due."""

    digest: str
    changed: float
    due: float


@dataclass(slots=True)
class RestartPolicyGate:
    """Holds back restarts and pushes that are due but must wait. Threads may call it at the same time."""

    config: Config
    store: Store
    clock: Clock = field(default_factory=Clock)
    slots: Slots = field(default_factory=NoSlots)
    is_single_look: bool = False
    """Whether earlier publications are unknown. The gate then ignores quiet periods."""
    _quiet: dict[str, _Quiet] = field(default_factory=dict)
    _switch_since: tuple[str, float] | None = None
    """The NixOS switch that the gate waits for: its lock holder, and since when."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def hold_back(self, look: Look) -> Look:
        """The same result, in which restarts and pushes that must wait are replaced by waits."""
        others = {each[1].vm.name: each for each in zip(look.decisions, look.observed, strict=True)}
        is_due = any(each.way for each in look.decisions)
        # Follow a known switch to its end, so that the next switch gets the full waiting time.
        switch = self._switch() if is_due or self._switch_since is not None else None
        decisions = []
        for decision, now in others.values():
            quiet = self._falls_quiet(decision, now)
            paced, put_off = Around(self.store, self.clock).hold_back(decision, now)
            wait = None
            is_up = now.unit is not None and now.unit.is_active and not now.unit.is_flapping
            if decision.way is not None and is_up:
                wait = (
                    switch
                    or self._turn(decision, now, others)
                    or self._limit(now.vm, decision.way)
                    or quiet
                    or self._pause(decision)
                )
            if paced.way is not None and is_up and put_off is not None:
                wait = Wait(*put_off)
            is_active = now.unit is not None and now.unit.is_active
            if paced.way is not None and is_active and wait is None:
                paced = self._slot(paced)  # last: a host holds no slot while it waits
            decisions.append(paced if wait is None else _waiting(paced, wait))
        return replace(look, decisions=tuple(decisions))

    def _slot(self, mine: Decision) -> Decision:
        """The same, or a wait for a slot of the fleet."""
        found = self.slots.left(mine.vm)
        if found is None:
            return mine
        state = mine.state if found.is_turn else State.WAITING
        waiting = _waiting(mine, Wait(found.reason, found.seconds, state))
        return replace(waiting, awaits_slot=True, detail=found.detail)

    def _falls_quiet(self, decision: Decision, observed: Observed) -> Wait | None:
        vm, now = decision.vm, self.clock.monotonic()
        digest = observed.sealed.digest if observed.sealed is not None else ""
        if decision.seal is not None:
            digest = decision.seal.digest
        with self._lock:
            if decision.way is None or not vm.quiet_seconds or self.is_single_look:
                self._quiet.pop(vm.name, None)
                return None
            known = self._quiet.setdefault(vm.name, _Quiet(digest, now, now))
            if known.digest != digest:
                known.digest, known.changed = digest, now
            left = min(known.changed + vm.quiet_seconds, known.due + vm.quiet_max_seconds) - now
        return Wait("until its secrets stop changing", left) if left > 0 else None

    def _switch(self) -> Wait | None:
        """Wait for a NixOS switch in progress, at most ``switch_seconds``; None if there is none."""
        rollout, now = self.config.rollout, self.clock.monotonic()
        holder = nixos.holder(Path(rollout.switch_lock))
        if not holder:
            self._switch_since = None
            return None
        known = self._switch_since  # read it once: threads that restart a VM call this too
        if known is None or known[0] != holder:
            # Another holder is another switch, even if no check ran between the two.
            known = self._switch_since = holder, now
        if now - known[1] >= rollout.switch_seconds:
            return None
        return Wait("until the NixOS switch in progress is done", _SWITCH_LOOK_SECONDS)

    def _turn(
        self, mine: Decision, now: Observed, others: Mapping[str, tuple[Decision, Observed]]
    ) -> Wait | None:
        vm, rollout = now.vm, self.config.rollout
        for name in vm.after:
            if name in others and _is_under_way(*others[name]):
                return Wait(f"until {name} has it first, as `after` says", _LONG, mine.state)
        if vm.name in rollout.canaries:
            return None
        for name in rollout.canaries:
            if name not in others or _change(mine, now) != _change(*others[name]):
                continue
            decision, other = others[name]
            if _is_under_way(decision, other):
                return Wait(f"until the canary {name} has it", _LONG, mine.state)
            left = rollout.canary_seconds - other.ran_for(self.clock.boot())
            if decision.state is State.IN_STEP and left > 0:
                return Wait(f"until the canary {name} has run for a while", left)
        return None

    @property
    def pause(self) -> Pause:
        """The pause between restarts and pushes of different VMs."""
        return Pause(self.config, self.store, self.clock)

    def _pause(self, mine: Decision) -> Wait | None:
        found = self.pause.left(mine.vm.name)
        if found is None:
            return None
        if not found.until:
            return Wait(f"until the restart or push of {found.vm} has ended", found.seconds, mine.state)
        return Wait(f"until the pause after {found.vm} is over, {_said(found.until)}", found.seconds)

    def _limit(self, vm: VmConfig, way: Way) -> Wait | None:
        """Wait for a window or for the rate; None if both allow this way now."""
        if way is Way.PUSH and not self.config.rollout.live_windows:
            return None
        return self._window(vm) or self._rate(vm)

    def _window(self, vm: VmConfig) -> Wait | None:
        if not vm.windows:
            return None
        now = self.clock.wall()
        try:
            opens = calendar.opens(vm.windows, now)
        except ConfigurationError as error:  # it was valid at the last reload; systemd has changed
            return Wait(f"until its windows can be read: {describe(error)}", _LONG)
        if opens <= now:
            return None
        if opens == math.inf:
            return Wait("for a restart window, but no restart window will ever open again", _LONG)
        return Wait(f"until its window opens, {_said(opens)}", opens - now)

    def _rate(self, vm: VmConfig) -> Wait | None:
        if not vm.restarts_per_hour:
            return None
        now = self.clock.boot()
        recent = self._recent(vm, now)
        if len(recent) < vm.restarts_per_hour:
            return None
        return Wait(
            f"until it has had fewer than {vm.restarts_per_hour} restarts in the last hour",
            recent[-vm.restarts_per_hour] + HOUR - now,
        )

    def note(self, vm: VmConfig, way: Way) -> None:
        """Record a restart or a push right before the agent asks systemd for it. Raises `StoreError`."""
        if vm.restarts_per_hour and (way is Way.RESTART or self.config.rollout.live_windows):
            now = self.clock.boot()
            self.store.record_restarts(vm.name, [*self._recent(vm, now), now][-vm.restarts_per_hour :])

    def _recent(self, vm: VmConfig, now: float) -> list[float]:
        """Times of a VM's restarts within the last hour, in order. Times in the future are dropped."""
        return sorted(moment for moment in self.store.restarts(vm.name) if 0 <= now - moment < HOUR)


def _said(moment: float) -> str:
    return time.strftime("%a %Y-%m-%d %H:%M:%S %Z", time.localtime(moment))


def _waiting(decision: Decision, wait: Wait) -> Decision:
    return replace(
        decision,
        way=None,
        state=wait.state,
        reasons=(wait.reason,),
        wait_seconds=max(_WAIT_SECONDS_MIN, wait.seconds),
    )


def _is_under_way(decision: Decision, now: Observed) -> bool:
    """Whether a VM needs a rollout, cannot start it yet, or is being restarted.

    A restart or push that was interrupted is not under way while the VM is held, ignored, refused or waits
    for its pair: others would wait for it without an end.
    """
    is_begun = now.attempt is not None and now.attempt.outcome is Outcome.RESTARTING
    is_restarting = is_begun and decision.state not in {
        State.HELD,
        State.APPROVAL,
        State.IGNORED,
        State.REFUSED,
        State.WAITING,
    }
    return decision.needs_rollout or decision.unready or is_restarting


def _change(decision: Decision, now: Observed) -> str:
    """Run of the change that a VM is due for; empty if this check seals it, which counts as one change."""
    return now.sealed.run if decision.seal is None and now.sealed is not None else ""
