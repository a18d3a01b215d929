# SPDX-License-Identifier: MIT
"""One look at the VMs of one configuration, and what follows from it: sealing, restarts, reports."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from systemd import daemon

from credferry.agent.daemon.fleet import report
from credferry.agent.daemon.reporter import Reporter
from credferry.agent.daemon.sources import SETTLES, Sources
from credferry.agent.reconcile.decision import State
from credferry.agent.reconcile.sealer import new_run
from credferry.agent.reconcile.status import standing
from credferry.agent.source.watch import LOOK_SECONDS
from credferry.agent.store.failures import StoreFailures

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from credferry.agent.daemon.publisher import Front
    from credferry.agent.daemon.reports import Reports
    from credferry.agent.daemon.sources import Reading
    from credferry.agent.daemon.textfile import Textfile
    from credferry.agent.errors import CredferryError
    from credferry.agent.log import Conditions
    from credferry.agent.reconcile.observer import Look
    from credferry.agent.rollout.session import Session
    from credferry.agent.rollout.workers import RestartPool
    from credferry.agent.source.watches import Watches
    from credferry.agent.systemd.connection import Connection
    from credferry.agent.systemd.units import SystemManager

LOOK_AGAIN_SECONDS = 1.0
_LOOK_OWED_SECONDS = 0.05
"""Pause after a request for restarts: the restart threads and the next look do not slow each other then."""
_SEAL_AGAIN_SECONDS = 5.0
"""Pause until the agent tries again to seal what it could not seal."""
JITTER = 0.1


@dataclass(frozen=True, slots=True)
class Turn:
    """Result of a turn of the loop. The next turn continues from it."""

    delay: float = 0.0
    """Seconds until the next turn, if no hint comes before."""
    failure: CredferryError | None = None
    """The error of the source, the bus or the store that stopped the turn."""
    is_settled: bool = True
    """False if the turn has not looked at all VMs, or if the source was still settling."""
    owes_look: bool = False
    """Whether the turn acted only on a change: the next turn must look at all VMs."""
    is_unsteady: bool = False
    """Whether a VM's unit fails and is started again and again."""


class Cycle:
    """Looks at the VMs of one session. Keeps from one look to the next what the source has shown."""

    def __init__(  # noqa: PLR0917 (what it works with, once)
        self,
        session: Session,
        connection: Connection,
        conditions: Conditions,
        restarts: RestartPool,
        metrics: Textfile,
        front: Front,
        watches: Watches,
        hint: Callable[[str], None],
        monotonic: Callable[[], float],
        reports: Reports,
    ) -> None:
        self._session = session
        self._connection = connection
        self._conditions = conditions
        self._restarts = restarts
        self._metrics = metrics
        self._front = front
        self._watches = watches
        self._hint = hint
        self._monotonic = monotonic
        self._reports = reports
        self._reporter = Reporter(session.audit)
        self._sources = Sources(session, watches, conditions)

    def run(self, before: Turn) -> Turn:
        """Look at what has changed or at all VMs, and act on it. Raises `BusError` and `StoreError`."""
        session = self._session
        vms, manager, now = session.config.vms.values(), self._connection.get(), self._monotonic()
        session.sealer.make_guest_keys(vms)
        may_go_first = manager is not None and not before.owes_look
        reading = self._sources.read(now, may_go_first=may_go_first)
        published = reading.published
        lost = published.errors
        self._sources.tell_lost(published, now)
        if lost and all(vm.secrets.keys() & lost.keys() for vm in vms):
            # A VM that the agent's own restart left down is rolled back even without a source, and one that
            # an operator's unit has taken out of service returns to it.
            look = session.pacer.hold_back(session.observer.look_at(published, vms, manager))
            self._restarts.ask(look)
            session.sealer.prune(look)  # a source that comes and goes must not fill the store
            owed = self._settle_with_fleet(look)
            self._metrics.looked(look, session.store, with_source=False)
            self._show(look)
            failure = next(iter(lost.values()))
            delay = min(self._resync(), owed)
            return replace(before, delay=delay, failure=failure, is_settled=True, owes_look=False)
        if reading.changed and manager is not None and may_go_first:
            self._go_first(reading, manager)
            return Turn(_LOOK_OWED_SECONDS, is_settled=False, owes_look=True, is_unsteady=before.is_unsteady)
        look = session.observer.look_at(published, vms, manager)
        self._sources.tell_back(published, now)
        failures = StoreFailures()
        look, sealed = self._act_on(look, reading.unsettled, failures)
        session.sealer.prune(look)
        owed = self._settle_with_fleet(look)
        self._metrics.looked(look, session.store, with_source=True)
        self._show(look)
        self._reporter.report(each for each in look.decisions if not each.vm.secrets.keys() & lost.keys())
        if any(decision.vm.name in sealed and not decision.needs_rollout for decision in look.decisions):
            self._hint("sealed")  # to publish it; a restart causes a look anyway
        daemon.notify(f"STATUS={_summary(look)}")
        failures.raise_first()
        is_settled = not any(SETTLES in decision.reasons for decision in look.decisions)
        is_unsteady = any(decision.look_again for decision in look.decisions)
        waits = [decision.wait_seconds for decision in look.decisions if decision.wait_seconds] + [owed]
        if _unsealed(look, sealed):
            waits.append(_SEAL_AGAIN_SECONDS)
        if is_unsteady or self._connection.present is None:
            return Turn(min([LOOK_AGAIN_SECONDS, *waits]), is_settled=is_settled, is_unsteady=is_unsteady)
        return Turn(min([self._resync(), *waits]), is_settled=is_settled)

    def _settle_with_fleet(self, look: Look) -> float:
        """Give back what no VM needs. Returns the seconds until the next call. Raises `StoreError`."""
        slots = self._session.pacer.slots
        owed = slots.settle(look, self._restarts.is_ordered)
        view = slots.view()
        report(view, self._conditions, self._monotonic())
        if self._session.config.fleet is not None:
            self._metrics.see_fleet(view)
            self._reports.note(look)
        return owed

    def _go_first(self, reading: Reading, manager: SystemManager) -> None:
        """Act on the VMs whose published values have changed, under one run id.

        If some VMs wait for others, or there are canaries, this looks at all VMs in their order.
        """
        session, config = self._session, self._session.config
        names, run = {vm.name for vm in reading.changed}, new_run()
        vms = [
            config.vms[name] for name in self._restarts.order if self._sources.is_ordered or name in names
        ]
        look = session.observer.look_at(reading.published, vms, manager)
        # If no VM waits for another, each VM is restarted while the next one is sealed.
        for part in [look] if self._sources.is_ordered else look.each():
            self._act_on(part, reading.unsettled, StoreFailures(), run)  # the next look meets them, too

    def _act_on(
        self, look: Look, unsettled: Mapping[str, float], failures: StoreFailures, run: str = ""
    ) -> tuple[Look, list[str]]:
        """Seal, and ask for restarts. Returns the look after limits, and the names of sealed VMs.

        A VM with values that have not settled waits. If some VMs go after others, all wait: what is sealed
        later would count as another change. One VM's `StoreError` is left in ``failures``: what was due to
        be sealed then counts as not sealed, until the next look.
        """
        sealed: list[str] = []
        with failures.kept():
            self._session.rollout.forget_ended(look)
        settled = self._sources.settled(look, unsettled)
        with failures.kept():
            sealed = self._session.sealer.seal_due(settled, run)
        look = self._sources.settled(self._session.pacer.hold_back(look), unsettled)
        self._restarts.ask(look, _unsealed(look, sealed))
        return look, sealed

    def _show(self, look: Look) -> None:
        """Publish the state of all VMs, including what was just sealed."""
        pairs = zip(look.observed, look.decisions, strict=True)
        self._front.show(standing(observed, decision, self._session.store) for observed, decision in pairs)

    def _resync(self) -> float:
        period = self._session.config.resync_seconds
        if not self._watches.is_whole:
            period = min(period, LOOK_SECONDS)
        return period * random.uniform(1 - JITTER, 1)  # noqa: S311 (spreads load, guards nothing)


def _unsealed(look: Look, sealed: Iterable[str]) -> set[str]:
    """The VMs for which something was to be sealed, and is not."""
    return {each.vm.name for each in look.decisions if each.seal is not None} - set(sealed)


def _summary(look: Look) -> str:
    counts = dict.fromkeys(State, 0)
    for decision in look.decisions:
        counts[decision.state] += 1
    return ", ".join(f"{count} {state.value}" for state, count in counts.items() if count)
