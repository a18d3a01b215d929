# SPDX-License-Identifier: MIT
"""The pause between restarts and pushes of different VMs: ``rollout.pause_seconds``.

The store holds, for each VM, when the agent last began or ended a restart or push of it. So the pause
survives a restart of the agent, and a crash costs at most one more pause. While a VM's restart or push goes
on, no other VM begins one; after ``slot_seconds`` it no longer holds up the others.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from credferry.agent.errors import StoreError
from credferry.agent.store.records import LastTurn, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from credferry.agent.config.model import Config
    from credferry.agent.rollout.clock import Clock
    from credferry.agent.store.generations import Store

_LOCK: Final = "pause.lock"
_SAME_MOMENT_SECONDS = 2.0
"""The wall clock has not jumped since a record if both clocks agree to within this."""


@dataclass(frozen=True, slots=True)
class Pausing:
    """Why a VM has to wait: another VM had its turn, or has it at present."""

    vm: str
    seconds: float
    """Seconds until the pause is over, or until the other VM no longer holds up others."""
    until: float
    """The end of the pause, in seconds since 1970; 0 while the other VM's restart or push goes on."""


@dataclass(frozen=True, slots=True)
class Pause:
    """The pause of one configuration. Threads and processes may call it at the same time."""

    config: Config
    store: Store
    clock: Clock

    def left(self, vm: str) -> Pausing | None:
        """What a VM still has to wait for; None if it may begin now."""
        if not self.config.rollout.pause_seconds:
            return None
        found = [each for name in self.config.vms if name != vm and (each := self._after(name))]
        return max(found, key=lambda each: each.seconds, default=None)

    def claim(self, vm: str) -> AbstractContextManager[None] | None:
        """Record that a VM begins, and return its turn. None if it has to wait for another VM.

        Raises `StoreError`. The turn records only when the work ends: its beginning is recorded by then.
        """
        if not self.config.rollout.pause_seconds:
            return nullcontext()
        with self.store.lock(_LOCK):  # two threads must not both find that nothing is left
            if self.left(vm) is not None:
                return None
            self.note(vm)
        return self._begun(vm)

    @contextmanager
    def turn(self, vm: str) -> Iterator[None]:
        """Record when the work on a VM begins and when it ends. This claims nothing.

        A full disk does not stop the work: a VM that is down must come up. Others then fail to `claim`.
        """
        with suppress(StoreError):
            self.note(vm)
        with self._begun(vm):
            yield

    @contextmanager
    def _begun(self, vm: str) -> Iterator[None]:
        try:
            yield
        finally:
            with suppress(StoreError):
                self.note(vm)

    def note(self, vm: str) -> None:
        """Record that a restart or push of a VM begins or ends now. Raises `StoreError`."""
        if self.config.rollout.pause_seconds:
            self.store.record_last_turn(vm, LastTurn(self.clock.boot(), self.clock.wall()))

    def _after(self, other: str) -> Pausing | None:
        last, limits = self.store.last_turn(other), self.config.rollout
        if last is None:
            return None
        ago = self.clock.boot() - last.moment
        if ago < 0:  # a moment that has not come yet is of an earlier boot
            return None
        attempt = self.store.attempt(other)
        is_under_way = attempt is not None and attempt.outcome is Outcome.RESTARTING
        if is_under_way and ago < limits.slot_seconds:
            return Pausing(other, limits.slot_seconds - ago, 0.0)
        left = limits.pause_seconds - ago
        if left <= 0:
            return None
        until, recorded = self.clock.wall() + left, last.wall + limits.pause_seconds
        return Pausing(other, left, recorded if abs(recorded - until) < _SAME_MOMENT_SECONDS else until)
