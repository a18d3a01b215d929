# SPDX-License-Identifier: MIT
"""One look at the VMs of one configuration, and what follows from it: sealing, restarts, reports."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from systemd import daemon

from credferry.agent.audit.events import Event
from credferry.agent.daemon.fleet import report
from credferry.agent.daemon.reporter import Reporter
from credferry.agent.errors import CredferryError, describe
from credferry.agent.reconcile.decision import State
from credferry.agent.reconcile.sealer import new_run
from credferry.agent.reconcile.status import standing
from credferry.agent.source.settling import Changes, Settling, seconds_left
from credferry.agent.source.watch import LOOK_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from credferry.agent.config.model import VmConfig
    from credferry.agent.daemon.publisher import Front
    from credferry.agent.daemon.reports import Reports
    from credferry.agent.daemon.textfile import Textfile
    from credferry.agent.log import Conditions
    from credferry.agent.reconcile.observer import Look
    from credferry.agent.rollout.session import Session
    from credferry.agent.rollout.workers import RestartPool
    from credferry.agent.source.published import Publication
    from credferry.agent.source.watches import Watches
    from credferry.agent.systemd.connection import Connection
    from credferry.agent.systemd.units import SystemManager

LOOK_AGAIN_SECONDS = 1.0
_LOOK_OWED_SECONDS = 0.05
"""Pause after a request for restarts: the restart threads and the next look do not slow each other then."""
JITTER = 0.1
_SETTLES = "until its secrets are written completely"


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
        self._changes = Changes()
        self._reporter = Reporter(session.audit)
        self._settling = Settling(session.config)
        vms = session.config.vms.values()
        self._is_ordered = bool(session.config.rollout.canaries) or any(vm.after for vm in vms)

    def arm(self) -> None:
        """Watch the present way to each source and to its secrets."""
        self._watches.arm()

    def run(self, before: Turn) -> Turn:
        """Look at what has changed or at all VMs, and act on it. Raises `BusError` and `StoreError`."""
        session = self._session
        vms, manager, now = session.config.vms.values(), self._connection.get(), self._monotonic()
        session.sealer.make_guest_keys(vms)
        published = session.observer.published(vms)
        lost = published.errors
        self._tell_lost(published, now)
        if lost and all(vm.secrets.keys() & lost.keys() for vm in vms):
            # A VM that the agent's own restart left down is rolled back even without a source, and one that
            # an operator's unit has taken out of service returns to it.
            look = session.pacer.hold_back(session.observer.look_at(published, vms, manager))
            self._restarts.ask(look)
            owed = self._settle_with_fleet(look)
            self._metrics.looked(look, session.store, with_source=False)
            self._show(look)
            failure = next(iter(lost.values()))
            return replace(before, delay=min(self._resync(), owed), failure=failure, is_settled=True)
        unsettled = self._settling.left(published, now)
        changed = [vm for vm in self._changes.since_last(vms, published) if not seconds_left(vm, unsettled)]
        if changed and manager is not None and not before.owes_look:
            self._go_first(changed, published, unsettled, manager)
            return Turn(_LOOK_OWED_SECONDS, is_settled=False, owes_look=True, is_unsteady=before.is_unsteady)
        look = session.observer.look_at(published, vms, manager)
        self._tell_back(published, now)
        look, sealed = self._act_on(look, unsettled)
        owed = self._settle_with_fleet(look)
        self._metrics.looked(look, session.store, with_source=True)
        self._show(look)
        self._reporter.report(each for each in look.decisions if not each.vm.secrets.keys() & lost.keys())
        if any(decision.vm.name in sealed and not decision.needs_rollout for decision in look.decisions):
            self._hint("sealed")  # to publish it; a restart causes a look anyway
        daemon.notify(f"STATUS={_summary(look)}")
        is_settled = not any(_SETTLES in decision.reasons for decision in look.decisions)
        is_unsteady = any(decision.look_again for decision in look.decisions)
        waits = [decision.wait_seconds for decision in look.decisions if decision.wait_seconds] + [owed]
        if is_unsteady or self._connection.present is None:
            return Turn(min([LOOK_AGAIN_SECONDS, *waits]), is_settled=is_settled, is_unsteady=is_unsteady)
        return Turn(min([self._resync(), *waits]), is_settled=is_settled)

    def _settle_with_fleet(self, look: Look) -> float:
        """Give back what no VM needs. Returns the seconds until the next call. Raises `StoreError`."""
        slots = self._session.pacer.slots
        owed = slots.settle(look)
        view = slots.view()
        report(view, self._conditions, self._monotonic())
        if self._session.config.fleet is not None:
            self._metrics.see_fleet(view)
            self._reports.note(look)
        return owed

    def _tell_lost(self, published: Publication, now: float) -> None:
        """Record each source that cannot be read, once. Raises `StoreError`."""
        for source, error in published.errors.items():
            if self._conditions.begin(_condition(source), str(error), now):
                vms = [vm.name for vm in self._session.config.vms.values() if source in vm.secrets]
                whose = (
                    f"the VMs that use it ({', '.join(vms)}) keep"
                    if source
                    else "every VM that uses it keeps"
                )
                self._session.audit.record(
                    Event.SOURCE_LOST,
                    f"cannot read {_called(source)}; {whose} the previous secrets: {describe(error)}",
                )

    def _tell_back(self, published: Publication, now: float) -> None:
        """Record each source that can be read again. Raises `StoreError`."""
        for source in published.snapshots:
            if counted := self._conditions.end(_condition(source), now):
                path = self._session.config.source_of(source).path
                name = f"source {source} ({path})" if source else f"source {path}"
                message = f"{name} can be read again; it was unavailable for {counted}"
                self._session.audit.record(Event.SOURCE_BACK, message)

    def _go_first(
        self,
        changed: Iterable[VmConfig],
        published: Publication,
        unsettled: Mapping[str, float],
        manager: SystemManager,
    ) -> None:
        """Act on the VMs whose published values have changed, under one run id.

        If some VMs wait for others, or there are canaries, this looks at all VMs in their order.
        """
        session, config = self._session, self._session.config
        names, run = {vm.name for vm in changed}, new_run()
        vms = [config.vms[name] for name in self._restarts.order if self._is_ordered or name in names]
        look = session.observer.look_at(published, vms, manager)
        # If no VM waits for another, each VM is restarted while the next one is sealed.
        for part in [look] if self._is_ordered else look.each():
            self._act_on(part, unsettled, run)

    def _act_on(self, look: Look, unsettled: Mapping[str, float], run: str = "") -> tuple[Look, list[str]]:
        """Seal, and ask for restarts. Returns the look after limits, and the names of sealed VMs.

        A VM with values that have not settled waits. If some VMs go after others, all wait: what is sealed
        later would count as another change.
        """
        self._session.rollout.forget_ended(look)
        sealed = self._session.sealer.seal_due(self._settled(look, unsettled), run)
        look = self._settled(self._session.pacer.hold_back(look), unsettled)
        self._restarts.ask(look)
        return look, sealed

    def _settled(self, look: Look, unsettled: Mapping[str, float]) -> Look:
        """The same look, in which VMs with new values that have not settled wait."""
        due = [each.vm for each in look.decisions if each.seal]
        lefts = {vm.name: seconds_left(vm, unsettled) for vm in due}
        if not any(lefts.values()):
            return look
        if self._is_ordered:
            steady = self._settling.steady(unsettled)
            longest = max(seconds_left(vm, steady) for vm in due)
            lefts = {name: max(left, longest) for name, left in lefts.items()}
        decisions = (
            replace(each, seal=None, way=None, why="", reasons=(_SETTLES,), wait_seconds=left)
            if (left := lefts.get(each.vm.name))
            else each
            for each in look.decisions
        )
        return replace(look, decisions=tuple(decisions))

    def _show(self, look: Look) -> None:
        """Publish the state of all VMs, including what was just sealed."""
        pairs = zip(look.observed, look.decisions, strict=True)
        self._front.show(standing(observed, decision, self._session.store) for observed, decision in pairs)

    def _resync(self) -> float:
        period = self._session.config.resync_seconds
        if not self._watches.is_whole:
            period = min(period, LOOK_SECONDS)
        return period * random.uniform(1 - JITTER, 1)  # noqa: S311 (spreads load, guards nothing)


def _condition(source: str) -> str:
    """The key in `Conditions` of a source that cannot be read."""
    return f"source {source}" if source else "source"


def _called(source: str) -> str:
    return f"source {source}" if source else "the source"


def _summary(look: Look) -> str:
    counts = dict.fromkeys(State, 0)
    for decision in look.decisions:
        counts[decision.state] += 1
    return ", ".join(f"{count} {state.value}" for state, count in counts.items() if count)
