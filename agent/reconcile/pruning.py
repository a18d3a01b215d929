# SPDX-License-Identifier: MIT
"""Notes which generations a VM runs well, and removes those that no start and no rollback needs any more."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from credferry.agent.errors import StoreError
from credferry.agent.messages import Messages
from credferry.agent.reconcile.observed import is_to_be_proved, is_unproven
from credferry.agent.store.locks import rollout_lock
from credferry.agent.store.records import Outcome
from credferry.agent.store.retention import KEEP

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from credferry.agent.reconcile.observed import Observed
    from credferry.agent.reconcile.starts import Starts
    from credferry.agent.store.evidence import Evidence
    from credferry.agent.store.generations import Store
    from credferry.agent.store.records import Assumed, Pushed

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
    _told: set[str] = field(default_factory=set)
    """VMs of which was logged that no more is sealed for them."""

    def note_sealed(self, observed: Observed) -> None:
        """Note that a VM has one more generation. ``observed`` is of before that."""
        vm = observed.vm.name
        self._sealed[vm] = self._sealed.get(vm, 0) + 1

    def note_worked(self, observed: Observed) -> None:
        """Note what a VM runs well. A rollback goes back to that, whatever was sealed and failed since."""
        grace_over = self.starts.is_grace_over(observed.unit)
        if (works := works_with(observed, grace_over)) is not None:
            self.store.note_worked(observed.vm.name, works.generation, works.digest)

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

    def prune(self, observed: Sequence[Observed]) -> None:
        """Remove what no rollback needs of the VMs that have been sealed. Raises `StoreError`.

        Later: a VM that is being restarted, whose rollback may need what nothing names yet; and a VM of
        which it is not known what it runs, as systemd was not asked.
        """
        for each in observed:
            self.note_worked(each)
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
        store.prune(vm.name, store.current_number(vm.name), keep)
        self._note_pruned(vm.name)


def works_with(now: Observed, grace_over: bool) -> Evidence | Pushed | Assumed | None:
    """What the VM runs, if it has come up with it and nothing says that it fails; else None."""
    runs, attempt = now.runs, now.attempt
    if runs is None or now.unit is None or not now.unit.is_active or now.is_in_doubt or is_unproven(now):
        return None
    if now.hint is None and not grace_over:
        return None
    if attempt is not None and attempt.digest == runs.digest:
        is_unwell = attempt.outcome is Outcome.FAILED and is_to_be_proved(now)
        if is_unwell or attempt.outcome is Outcome.RESTARTING:
            return None
    return runs


def needed(store: Store, observed: Observed) -> set[int]:
    """Generations that a rollback may need, regardless of how many were sealed since."""
    name, runs = observed.vm.name, observed.runs
    kept = {store.find(name, each.digest, each.generation) for each in store.worked(name)}
    if runs is not None:
        kept |= {runs.generation, store.find(name, runs.digest, runs.generation)}
    if observed.pushed is not None:
        kept.add(observed.pushed.asked)
    if observed.attempt is not None:
        kept |= {observed.attempt.previous, observed.attempt.ran}
    return kept
