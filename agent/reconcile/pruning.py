# SPDX-License-Identifier: MIT
"""Removes generations that no start and no rollback of a VM needs any more."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from credferry.agent.errors import StoreError
from credferry.agent.messages import Messages
from credferry.agent.store.locks import rollout_lock
from credferry.agent.store.retention import KEEP

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from credferry.agent.reconcile.observed import Observed
    from credferry.agent.reconcile.starts import Starts
    from credferry.agent.store.generations import Store

_log = Messages()
_MOST = 16
"""So many generations of a VM may be sealed before older ones are removed. A restart may take minutes."""


@dataclass(frozen=True, slots=True)
class Pruning:
    """Prunes each VM after it was sealed, and once after the agent's start: a crash may have left some."""

    store: Store
    starts: Starts
    _sealed: dict[str, int] = field(default_factory=dict)
    """By VM: generations sealed since it was pruned. A VM that is missing here was not examined yet."""
    _needed: dict[str, set[int]] = field(default_factory=dict)
    """By VM: what a rollback needed when it was sealed for the first time since it was pruned. Changes that
    failed since, one after the other, must not take the place of the last one that worked."""
    _told: set[str] = field(default_factory=set)
    """VMs of which was logged that no more is sealed for them."""

    def note_sealed(self, observed: Observed) -> None:
        """Note that a VM has one more generation. ``observed`` is of before that."""
        vm = observed.vm.name
        self._sealed[vm] = self._sealed.get(vm, 0) + 1
        self._needed.setdefault(vm, needed(self.store, observed))

    def is_owed(self, observed: Observed) -> bool:
        """Whether so much is to be removed first that no more may be sealed for a VM.

        Never while systemd cannot be asked: then nothing can be removed, and sealing must go on.
        """
        vm = observed.vm.name
        is_owed = observed.unit is not None and self._sealed.get(vm, 0) >= _MOST
        if is_owed and vm not in self._told:
            self._told.add(vm)
            _log.info(  # no warning: a source that changes all the time has it at each restart
                "many changes were sealed for a VM while it is being restarted; what is published now is "
                "sealed once the restart has ended: see systemctl list-jobs",
                vm=vm,
            )
        return is_owed

    def prune(self, observed: Iterable[Observed]) -> None:
        """Remove what no rollback needs of the VMs that have been sealed. Raises `StoreError`.

        Later: a VM that is being restarted, whose rollback may need what nothing names yet; and a VM of
        which it is not known what it runs, as systemd was not asked.
        """
        due = [each for each in observed if each.unit is not None and self._has_too_many(each.vm.name)]
        if not due:
            return
        with self.store.lock():
            started = self.starts.invocations()
            for each in due:
                with self.store.lock(rollout_lock(each.vm.name), wait=False) as is_at_rest:
                    if is_at_rest:
                        self._prune(each, started)

    def _has_too_many(self, vm: str) -> bool:
        """Whether a VM may have generations to remove. Reads its directory only if it was sealed."""
        if self._sealed.get(vm) == 0:
            return False
        try:
            if len(self.store.numbers(vm)) > KEEP:
                return True
        except StoreError:
            return False  # a later look examines it, and the others are pruned now
        self._note_pruned(vm)
        return False

    def _note_pruned(self, vm: str) -> None:
        self._sealed[vm] = 0
        self._needed.pop(vm, None)
        self._told.discard(vm)

    def _prune(self, observed: Observed, started: Mapping[str, str]) -> None:
        """Prune a VM. The caller has its locks, so what is read here stays true until this returns."""
        vm, unit, store = observed.vm, observed.unit, self.store
        # Since the look, the VM may have been rolled back, restarted or pushed to.
        now = replace(
            observed,
            attempt=store.attempt(vm.name),
            assumed=store.assumed(vm.name),
            pushed=self.starts.pushed(vm, unit) if unit is not None else None,
        )
        keep, known = needed(store, now), now.evidence.invocation_id if now.evidence is not None else ""
        evidence = self.starts.kept_evidence(vm) if started.get(vm.name, "") not in {"", known} else None
        if evidence is not None:
            keep |= {evidence.generation, store.find(vm.name, evidence.digest, evidence.generation)}
        keep |= self._needed.get(vm.name, set())
        store.prune(vm.name, store.current_number(vm.name), keep)
        self._note_pruned(vm.name)


def needed(store: Store, observed: Observed) -> set[int]:
    """Generations that a rollback may need, regardless of how many were sealed since."""
    kept, runs = set[int](), observed.runs
    if runs is not None:
        kept |= {runs.generation, store.find(observed.vm.name, runs.digest, runs.generation)}
    if observed.pushed is not None:
        kept.add(observed.pushed.asked)
    if observed.attempt is not None:
        kept |= {observed.attempt.previous, observed.attempt.ran}
    return kept
