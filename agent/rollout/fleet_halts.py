# SPDX-License-Identifier: MIT
"""Halts a group of the fleet for a VM that failed, and finds out that an operator has resumed it.

A group has one halt at a time. A VM that fails while the group is halted for another one tells its halt
again and again, until the fleet has it or the VM is well: so the end of the other halt frees nobody for
long. It keeps its slot meanwhile.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from credferry.agent.fleet.model import Applied, Group, Halted, Unavailable
from credferry.agent.messages import Messages
from credferry.agent.rollout.fleet_calls import AWAY, FleetCalls
from credferry.agent.store.locks import rollout_lock
from credferry.agent.store.records import Claim

if TYPE_CHECKING:
    from collections.abc import Callable

    from credferry.agent.config.model import VmConfig
    from credferry.agent.fleet.model import Halt, Holder, UnreadableHalt, Unsupported

_log = Messages()


@dataclass(slots=True)
class FleetHalts(FleetCalls):
    """What is owed to the fleet for VMs on which a change has failed."""

    def failed(self, vm: VmConfig, change: str, reason: str) -> None:
        """See `Slots`."""
        group = self._group(vm)
        with self._writing:
            claim = self.store.claim(vm.name) or Claim(group, self.me.host, change, self.clock.wall())
            self.store.record_claim(
                vm.name, msgspec.structs.replace(claim, change=change, halt=reason, is_told=False)
            )
        self._call(vm.name, self._tell_halt)

    def _tell(self, name: str) -> float:
        """Have the group halted for a VM, if it is time. Returns the seconds until then."""
        wait = self._retry_at.get(name, 0.0) - self.clock.monotonic()
        return wait if wait > 0 else self._call(name, self._tell_halt)

    def _look_for_resume(self, name: str) -> float:
        """Have the engine asked whether a VM's halt has been ended, as `_tell`."""
        at = max(self._retry_at.get(name, 0.0), self._resumed_at.get(name, 0.0))
        wait = at - self.clock.monotonic()
        return wait if wait > 0 else self._call(name, self._ask_for_resume)

    def _call(self, name: str, work: Callable[[str], None]) -> float:
        """Have the engine called for a VM that failed, unless that is under way."""
        with self._lock:
            if name not in self._calling:
                self._calling.add(name)
                self.thread.submit(partial(work, name))
        return math.inf

    def _tell_halt(self, name: str) -> None:
        try:
            claim = self.store.claim(name)
            if claim is None or not claim.halt or claim.is_told:
                return
            holder = self._holder(name, claim.host)
            found = self.engine.halt(claim.group, holder, claim.change, claim.halt)
            with self._lock:
                self._after_call(name, claim.group, found)
                if isinstance(found, Applied):
                    self._halted[claim.group] = f"{holder.name}: {claim.halt}"
            if not isinstance(found, Unavailable | Halted):
                self._note_told(name, claim)
        finally:
            self._end_call(name)

    def _note_told(self, name: str, claim: Claim) -> None:
        with self._writing:
            if self.store.claim(name) == claim:  # else a later failure is to be told
                self.store.record_claim(name, msgspec.structs.replace(claim, is_told=True))

    def _ask_for_resume(self, name: str) -> None:
        try:
            claim = self.store.claim(name)
            if claim is None:
                return
            found: Group | Unavailable | Unsupported = self.engine.state(claim.group)
            with self._lock:
                self._after_call(name, claim.group, found)
                self._resumed_at[name] = self.clock.monotonic() + self.uniform(*AWAY)
        finally:
            self._end_call(name)
        if isinstance(found, Group) and _is_over(found.halt, self._holder(name, claim.host)):
            with self.store.lock(rollout_lock(name), wait=False) as had:
                if had and self.store.claim(name) == claim:
                    _log.info("an operator has resumed the group: the slot is given back", vm=name)
                    self._begin_to_return(name, claim)

    def _end_call(self, name: str) -> None:
        with self._lock:
            self._calling.discard(name)
        self.hint()


def _is_over(halt: Halt | UnreadableHalt | None, holder: Holder) -> bool:
    """Whether the halt for a VM, which the fleet had, is over. Another may have halted the group since."""
    return halt is None or (halt.holder is not None and halt.holder != holder)
