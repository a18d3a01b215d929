# SPDX-License-Identifier: MIT
"""One look at the VMs of one configuration, and what follows from it: sealing, restarts, reports."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from systemd import daemon

from credferry.agent.audit.events import Event
from credferry.agent.daemon.reporter import Reporter
from credferry.agent.errors import CredferryError, SourceError, describe
from credferry.agent.reconcile.decision import State
from credferry.agent.reconcile.observer import Look, without_source
from credferry.agent.reconcile.sealer import new_run
from credferry.agent.reconcile.status import standing
from credferry.agent.source.settling import Changes, Settler
from credferry.agent.source.watch import LOOK_SECONDS, Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from credferry.agent.config.model import VmConfig
    from credferry.agent.daemon.publisher import Front
    from credferry.agent.daemon.textfile import Textfile
    from credferry.agent.log import Conditions
    from credferry.agent.rollout.session import Session
    from credferry.agent.rollout.workers import RestartPool
    from credferry.agent.source.snapshot import Snapshot
    from credferry.agent.systemd.connection import Connection
    from credferry.agent.systemd.units import SystemManager

LOOK_AGAIN_SECONDS = 1.0
_LOOK_OWED_SECONDS = 0.05
"""Pause after a request for restarts: the restart threads and the next look do not slow each other then."""
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
        watch: Watch,
        hint: Callable[[str], None],
        monotonic: Callable[[], float],
    ) -> None:
        source = session.config.source
        self._session = session
        self._connection = connection
        self._conditions = conditions
        self._restarts = restarts
        self._metrics = metrics
        self._front = front
        self._watch = watch
        self._hint = hint
        self._monotonic = monotonic
        self._changes = Changes()
        self._reporter = Reporter(session.audit)
        self._settler = Settler(source.quiet_seconds, source.quiet_max_seconds)
        # A secret without a slash in its name is in the source directory itself, unless links are followed.
        secrets = session.config.secrets
        self._watched = [name for name in secrets if source.follow_links or "/" in name]

    def arm(self) -> None:
        """Watch the present way to the source and to its secrets."""
        self._watch.arm(self._watched)

    def run(self, before: Turn) -> Turn:
        """Look at what has changed or at all VMs, and act on it. Raises `BusError` and `StoreError`."""
        session = self._session
        vms, manager, now = session.config.vms.values(), self._connection.get(), self._monotonic()
        session.sealer.make_guest_keys(vms)
        try:
            snapshot = session.observer.snapshot(vms)
        except SourceError as error:
            if self._conditions.begin("source", str(error), now):
                session.audit.record(
                    Event.SOURCE_LOST,
                    f"cannot read the source; every VM keeps its previous secrets: {describe(error)}",
                )
            # A VM that the agent's own restart left down is rolled back even without a source.
            look = session.observer.look_at(without_source(error), vms, manager)
            self._restarts.ask(look)
            self._metrics.looked(look, session.store, with_source=False)
            self._show(look)
            return replace(before, delay=self._resync(), failure=error, is_settled=True)
        changed = self._changes.since_last(vms, snapshot)
        if changed and manager is not None and not before.owes_look:
            self._go_first(changed, snapshot, manager)
            return Turn(_LOOK_OWED_SECONDS, is_settled=False, owes_look=True, is_unsteady=before.is_unsteady)
        look = session.observer.look_at(snapshot, vms, manager)
        if counted := self._conditions.end("source", now):
            path = session.config.source.path
            message = f"source {path} can be read again; it was unavailable for {counted}"
            session.audit.record(Event.SOURCE_BACK, message)
        unsettled = self._unsettled(look)
        if unsettled:
            return Turn(unsettled, is_settled=False, is_unsteady=before.is_unsteady)
        look, sealed = self._act_on(look)
        self._metrics.looked(look, session.store, with_source=True)
        self._show(look)
        self._reporter.report(look.decisions)
        if any(decision.vm.name in sealed and not decision.needs_rollout for decision in look.decisions):
            self._hint("sealed")  # to publish it; a restart causes a look anyway
        daemon.notify(f"STATUS={_summary(look)}")
        is_unsteady = any(decision.look_again for decision in look.decisions)
        if is_unsteady or self._connection.present is None:
            return Turn(LOOK_AGAIN_SECONDS, is_unsteady=is_unsteady)
        waits = (decision.wait_seconds for decision in look.decisions if decision.wait_seconds)
        return Turn(min([self._resync(), *waits]))

    def _go_first(self, changed: Iterable[VmConfig], snapshot: Snapshot, manager: SystemManager) -> None:
        """Act on the VMs whose published values have changed, under one run id.

        If some VMs wait for others, or there are canaries, this looks at all VMs in their order.
        """
        session, config = self._session, self._session.config
        names, run = {vm.name for vm in changed}, new_run()
        is_ordered = bool(config.rollout.canaries) or any(vm.after for vm in config.vms.values())
        vms = [config.vms[name] for name in self._restarts.order if is_ordered or name in names]
        look = session.observer.look_at(snapshot, vms, manager)
        # If no VM waits for another, each VM is restarted while the next one is sealed.
        for part in [look] if is_ordered else look.each():
            self._act_on(part, run)

    def _act_on(self, look: Look, run: str = "") -> tuple[Look, list[str]]:
        """Seal, and ask for restarts. Returns the look after limits, and the names of sealed VMs."""
        self._session.rollout.forget_ended(look)
        sealed = self._session.sealer.seal_due(look, run)
        look = self._session.pacer.hold_back(look)
        self._restarts.ask(look)
        return look, sealed

    def _unsettled(self, look: Look) -> float:
        """Seconds until the source has settled and sealing may start; 0.0 if nothing has to wait."""
        left = self._settler.wait(look.generation, look.content, self._monotonic())
        return left if any(decision.seal for decision in look.decisions) else 0.0

    def _show(self, look: Look) -> None:
        """Publish the state of all VMs, including what was just sealed."""
        pairs = zip(look.observed, look.decisions, strict=True)
        self._front.show(standing(observed, decision, self._session.store) for observed, decision in pairs)

    def _resync(self) -> float:
        period = self._session.config.source.resync_seconds
        if not self._watch.is_whole:
            period = min(period, LOOK_SECONDS)
        return period * random.uniform(1 - JITTER, 1)  # noqa: S311 (spreads load, guards nothing)


def _summary(look: Look) -> str:
    counts = dict.fromkeys(State, 0)
    for decision in look.decisions:
        counts[decision.state] += 1
    return ", ".join(f"{count} {state.value}" for state, count in counts.items() if count)
