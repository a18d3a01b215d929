# SPDX-License-Identifier: MIT
"""Notes which generations a VM runs well, and removes those that no start and no rollback needs any more."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from credferry.agent.errors import UnlistableError
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
"""So many more generations than `KEEP` may be there at most, as a restart may take minutes."""


@dataclass(frozen=True, slots=True)
class Pruning:
    """Prunes each VM once, as a crash may have left some, and after any process has sealed for it."""

    store: Store
    starts: Starts
    _pruned: dict[str, int] = field(default_factory=dict)
    """By VM: its current generation when it was pruned. A VM that is missing here is to be examined."""
    _told: set[str] = field(default_factory=set)
    """VMs of which was logged that no more is sealed for them."""

    def note_sealed(self, vm: str) -> None:
        """Note that a VM has one more generation."""
        self._pruned.pop(vm, None)

    def note_worked(self, observed: Observed) -> None:
        """Note what a VM runs well. A rollback goes back to that, whatever was sealed and failed since."""
        grace_over = self.starts.is_grace_over(observed.unit)
        if (works := works_with(observed, grace_over)) is not None:
            self.store.note_worked(observed.vm.name, works.generation, works.digest)

    def is_owed(self, observed: Observed) -> bool:
        """Whether so much is to be removed first that no more may be sealed for a VM. Raises `StoreError`.

        This removes at once what it can. The caller holds the lock for sealing. Never while systemd cannot
        be asked: then sealing must go on.
        """
        vm = observed.vm.name
        if observed.unit is None or len(self.store.numbers(vm)) < KEEP + _MOST:
            return False
        if self._is_pruned(observed, self.starts.invocations()):
            return False
        if vm not in self._told:
            self._told.add(vm)
            _log.info(  # no warning: a source that changes all the time has it at each restart
                "many changes were sealed for a VM while it is being restarted; what is published now is "
                "sealed once the restart has ended: see systemctl list-jobs",
                vm=vm,
            )
        return True

    def prune(self, observed: Sequence[Observed]) -> None:
        """Remove what no rollback needs of the VMs that have been sealed. Raises `StoreError`.

        Later: a VM that is being restarted, whose rollback may need what nothing names yet; and a VM of
        which it is not known what it runs, as systemd was not asked. Of such a VM this removes only what
        exceeds a bound, and nothing that a record or root's evidence names.
        """
        for each in observed:
            self.note_worked(each)
        due = [each for each in observed if self._has_too_many(each)]
        if not due:
            return
        with self.store.lock():
            started = self.starts.invocations()
            for each in due:
                self._is_pruned(each, started)

    def _has_too_many(self, observed: Observed) -> bool:
        """Whether a VM may have generations to remove. Reads its directory only if it was sealed."""
        if self._pruned.get(observed.vm.name) == _current(observed):
            return False
        try:
            number = len(self.store.numbers(observed.vm.name))
        except UnlistableError:
            return False  # a later look examines it, and the others are pruned now
        if number > KEEP:
            return observed.unit is not None or number > KEEP + _MOST
        self._note_pruned(observed)
        return False

    def _note_pruned(self, observed: Observed) -> None:
        self._pruned[observed.vm.name] = _current(observed)
        self._told.discard(observed.vm.name)

    def _is_pruned(self, observed: Observed, started: Mapping[str, str]) -> bool:
        """Prune a VM, unless it is being restarted. The caller holds the lock for sealing."""
        with self.store.lock(rollout_lock(observed.vm.name), wait=False) as is_at_rest:
            if is_at_rest:
                self._prune(observed, started)
            return is_at_rest

    def _prune(self, observed: Observed, started: Mapping[str, str]) -> None:
        """Prune a VM. The caller has its locks, so what is read here stays true until this returns."""
        vm, unit, store = observed.vm, observed.unit, self.store
        # Since the look, the VM may have been rolled back, restarted or pushed to.
        now = replace(
            observed,
            attempt=store.attempt(vm.name),
            assumed=store.assumed(vm.name),
            pushed=self.starts.pushed(vm, unit) if unit is not None else store.pushed(vm.name),
        )
        keep, known = needed(store, now), now.evidence.invocation_id if now.evidence is not None else ""
        evidence = self.starts.kept_evidence(vm) if started.get(vm.name, "") not in {"", known} else None
        if evidence is not None:
            keep |= {evidence.generation, store.find(vm.name, evidence.digest, evidence.generation)}
        elif unit is None and vm.name in started:
            return  # it has evidence that does not tell what it runs
        store.prune(vm.name, store.current_number(vm.name), keep)
        if unit is not None:  # else the next look that knows more examines it
            self._note_pruned(observed)


def works_with(now: Observed, grace_over: bool) -> Evidence | Pushed | Assumed | None:
    """What the VM runs, if it has come up with it and nothing says that it fails; else None."""
    runs, attempt = now.runs, now.attempt
    if runs is None or now.unit is None or not now.unit.is_active or now.is_in_doubt or is_unproven(now):
        return None
    if now.hint is None and not grace_over:
        return None
    if attempt is not None and attempt.digest == runs.digest:
        is_unwell = attempt.outcome in {Outcome.FAILED, Outcome.ROLLED_BACK} and is_to_be_proved(now)
        if is_unwell or attempt.outcome is Outcome.RESTARTING:
            return None
    return runs


def needed(store: Store, observed: Observed) -> set[int]:
    """Generations that a rollback may need, regardless of how many were sealed since."""
    name, runs = observed.vm.name, observed.runs
    known = [*store.worked(name), *([runs] if runs is not None else [])]
    if observed.unit is None:  # what it runs is one of these, as far as anything tells
        known += [each for each in (observed.assumed, observed.pushed) if each is not None]
    kept = {store.find(name, each.digest, each.generation) for each in known}
    kept |= {each.generation for each in known}
    if observed.pushed is not None:
        kept.add(observed.pushed.asked)
    if observed.attempt is not None:
        kept |= {observed.attempt.previous, observed.attempt.ran}
    return kept


def _current(observed: Observed) -> int:
    """The number of a VM's current generation; 0 for none."""
    return observed.sealed.generation if observed.sealed is not None else 0
