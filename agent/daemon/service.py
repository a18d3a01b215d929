# SPDX-License-Identifier: MIT
"""The daemon's loop: it waits for hints and timers, looks, seals, and passes restarts to worker threads.

The loop never waits for a VM. A turn looks at all VMs. After a change in the source, one turn first acts on
the change, and the next turn looks at all VMs. Each turn ends with a message to systemd's watchdog.
"""

from __future__ import annotations

import gc
import queue
import random
import signal
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from systemd import daemon

from credferry.agent.audit.events import Event
from credferry.agent.audit.writer import KEY_CHANGE, Audit
from credferry.agent.config import loading as configuration
from credferry.agent.daemon.publisher import Front, NoFront
from credferry.agent.daemon.reporter import Reporter
from credferry.agent.daemon.textfile import Textfile
from credferry.agent.errors import BusError, CredferryError, KeyFileError, SourceError, StoreError, describe
from credferry.agent.journald import Sender
from credferry.agent.log import Conditions
from credferry.agent.reconcile import rekey
from credferry.agent.reconcile.decision import State
from credferry.agent.reconcile.observer import Look, without_source
from credferry.agent.reconcile.sealer import new_run
from credferry.agent.reconcile.status import standing
from credferry.agent.rollout.orders import Orders
from credferry.agent.rollout.pacing import Clock, RestartPolicyGate
from credferry.agent.rollout.session import Session
from credferry.agent.rollout.workers import Dispatcher, RestartPool
from credferry.agent.source.settling import Changes, Settler
from credferry.agent.source.watch import LOOK_SECONDS, Watch
from credferry.agent.store.opening import open_store, present_key
from credferry.agent.systemd.connection import RETRY_SECONDS, Connection
from credferry.agent.systemd.units import SystemManager

if TYPE_CHECKING:
    from types import FrameType

    from credferry.agent.config.model import Config, VmConfig
    from credferry.agent.sealing.keys import CredentialKey
    from credferry.agent.source.snapshot import Snapshot
    from credferry.agent.store.generations import Store

_log = structlog.get_logger()
_LOOK_AGAIN_SECONDS = 1.0
_LOOK_OWED_SECONDS = 0.05
"""Pause after a request for restarts: the restart threads and the next look do not slow each other then."""
_JITTER = 0.1
_STORE_RETRY_SECONDS = 5.0
_UNSENT_SECONDS = 5.0
"""How often the agent retries to send a record that journald has not taken."""

Connect = Callable[[Callable[[str], None]], SystemManager]
"""Connects to systemd. Its argument is called when a unit's job ends or when the connection is lost."""


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of the host, other than systemd, that the daemon uses. A test can replace them."""

    sender: Callable[[], Sender] = Sender
    watch: Callable[[Path, Callable[[str], None]], Watch] = Watch
    hire: Callable[[Callable[[str], None], int, float], Dispatcher] = Dispatcher
    """Makes the dispatcher, which carries out restarts."""
    stop: Callable[[], threading.Event] = threading.Event
    """Makes the event that ends waiting early once it is set."""
    clock: Clock = field(default_factory=Clock)


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


def _no_front(_orders: Orders) -> Front:
    return NoFront()


class Service:
    """One run of the daemon over one configuration file."""

    def __init__(
        self,
        path: Path,
        connect: Connect,
        appear: Callable[[Orders], Front] = _no_front,
        parts: Parts | None = None,
    ) -> None:
        self._path = path
        self._parts = Parts() if parts is None else parts
        self._monotonic = self._parts.clock.monotonic
        self._hints: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._stop = self._parts.stop()
        self._conditions = Conditions()
        self._connection = Connection(lambda: connect(self._on_job), self._conditions, self._monotonic)
        self._metrics = Textfile()
        self._orders = Orders(self._hints.put, self._monotonic)
        self._front = appear(self._orders)
        self._is_announced = False
        self._is_taken_over = False
        self._sender = self._parts.sender()
        self._audit_keys: dict[str, CredentialKey] = {}
        self._unfinished: tuple[Store, ...] = ()
        """The store with each key that the agent began to go over to and has not, the newest first."""
        config = configuration.load(path)
        self._restarts = RestartPool(
            config,
            self._connection,
            self._orders,
            self._stop,
            lambda: self._hints.put("rollout"),
            self._parts.hire,
        )
        identity = rekey.identity(Path(config.host_key))  # before the key is read or made
        store = open_store(config)
        self._use(config, store, self._audit_of(config, store))
        self._key_identity = identity

    def run(self) -> None:
        """Run until SIGTERM or SIGINT; SIGHUP reloads the configuration.

        Raises `ConfigurationError` and `KeyFileError`, which end the daemon. For a condition that may end by
        itself, such as a missing source or bus or a full disk, the daemon reports it once and retries.
        """
        with ExitStack() as stack:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                stack.callback(signal.signal, number, signal.signal(number, self._on_signal))
            self._watch.start()
            stack.callback(self._end_watch)
            self._restarts.start()
            stack.callback(self._restarts.stop)
            self._front.start()
            stack.callback(self._front.stop)
            ready, turn = False, Turn()
            while not self._stop.is_set():
                turn = self._turn(turn)
                if not ready:
                    # A verb that follows `systemctl start` must find the agent on the bus.
                    self._front.settle()
                    daemon.notify("READY=1")
                    ready = True
                    # The objects that exist now stay: the garbage collector need not examine them again.
                    gc.collect()
                    gc.freeze()
                self._wait(turn)
            daemon.notify("STOPPING=1")
        self._orders.abandon()
        with suppress(StoreError):  # already reported, and no reason not to end
            self._audit.record(Event.AGENT_STOPPED, "credferry stops; nothing it started is stopped with it")

    def _audit_of(self, config: Config, store: Store) -> Audit:
        self._metrics.use(config.metrics)  # before the audit's first record
        listeners = (self._metrics.hear, self._front.hear)
        # One sender for the whole run: a reload must not lose the records that it could not send yet.
        return Audit(store, self._sender, listeners, partial(present_key, config), self._audit_keys)

    def _use(self, config: Config, store: Store, audit: Audit) -> None:
        self._config = config
        self._store = store
        self._changes = Changes()
        self._audit = audit
        pacer = RestartPolicyGate(config, store, self._parts.clock)
        session = Session.of(config, store, audit, pacer, stop=self._stop, monotonic=self._monotonic)
        self._session = session
        self._observer, self._pacer = session.observer, session.pacer
        self._sealer, self._rollout = session.sealer, session.rollout
        self._restarts.use(config, store, self._rollout)
        self._reporter = Reporter(self._audit)
        self._settler = Settler(config.source.quiet_seconds, config.source.quiet_max_seconds)
        self._watch = self._parts.watch(Path(config.source.path), self._hints.put)
        # A secret without a slash in its name is in the source directory itself, unless links are followed.
        follow = config.source.follow_links
        self._watched = [name for name in config.secrets if follow or "/" in name]
        self._orders.use(session, lambda: self._connection.present)

    def _go_over_to(self, config: Config, news: str = "") -> None:
        """Switch to a configuration, if ``news`` announces a new one, and to the host's present key.

        If the key is another one, the sealed generations and the records about VMs are moved to it. Raises
        `KeyFileError` and `StoreError`; in that case nothing has changed.
        """
        identity = rekey.identity(Path(config.host_key))  # before the key is read: a later key differs
        store = open_store(config)
        audit, is_other_key = self._audit_of(config, store), store.key != self._store.key
        if is_other_key or self._unfinished:
            self._renew(config, store)
        if is_other_key:
            audit.record(Event.HOST_KEY, KEY_CHANGE)
        if news:
            audit.record(Event.CONFIGURATION, news)
        if news or is_other_key:
            self._watch.stop()
            self._use(config, store, audit)
            self._watch.start()
        self._key_identity, self._unfinished = identity, ()

    def _renew(self, config: Config, store: Store) -> None:
        """Seal all generations with the key of ``store``. Raises `StoreError`."""
        befores = (*self._unfinished, self._store)
        if store.key not in [each.key for each in befores]:
            self._unfinished = (store, *self._unfinished)
        # Also VMs that only one of the two configurations has: they may come back.
        rekey.renew([config, self._config], befores, store)

    def _turn(self, before: Turn) -> Turn:
        """Look at the change or at all VMs, and act on the result."""
        # Armed before the look: a change after the look then causes a hint.
        self._watch.arm(self._watched)
        self._orders.begin_look()
        try:
            self._restarts.raise_error()
            self._audit.catch_up()
            self._announce()
            self._take_over()
            self._heed_host_key()
            turn = self._look(before)
            turn = replace(turn, delay=min(turn.delay, self._restarts.relieve()))
        except BusError as error:
            self._connection.lose(error)
            turn = replace(before, failure=error, delay=RETRY_SECONDS)
        except StoreError as error:
            self._lose_store(error)
            turn = replace(before, failure=error, delay=_STORE_RETRY_SECONDS)
        else:
            self._tell_over("store", "the store can be written again")
        if turn.failure is not None or turn.is_settled:
            self._orders.end_look(turn.failure)
        self._write_metrics()
        daemon.notify("WATCHDOG=1")
        return replace(turn, delay=min(turn.delay, _UNSENT_SECONDS)) if self._sender.is_behind else turn

    def _write_metrics(self) -> None:
        config, now = self._config.metrics, self._monotonic()
        lacks, period = self._conditions.keys, self._config.source.resync_seconds * (1 - _JITTER)
        try:
            self._metrics.write_if_due(config, lacks, period)
        except OSError as error:
            if self._conditions.begin("metrics", str(error), now):
                _log.error("metrics cannot be written", file=config.textfile, reason=error.strerror)
        else:
            self._tell_over("metrics", "metrics can be written again")

    def _announce(self) -> None:
        if not self._is_announced:
            self._audit.repeat_last()
            self._audit.record(Event.AGENT_STARTED, f"credferry watches {self._config.source.path}")
            self._is_announced = True

    def _take_over(self) -> None:
        """Convert a store of an earlier form to the present form, before any decision uses it."""
        if not self._is_taken_over:
            self._is_taken_over = self._session.take_over(self._connection.get())

    def _heed_host_key(self) -> None:
        """Switch to the host's key if it is another one: PID 1 opens nothing sealed with the old key."""
        identity = rekey.identity(Path(self._config.host_key))
        if identity == self._key_identity and identity is not None:
            return
        try:
            self._go_over_to(self._config)
        except KeyFileError as error:
            if self._conditions.begin("key", str(error), self._monotonic()):
                _log.error("cannot read the new host key; keeping the old one", reason=describe(error))
        else:
            self._tell_over("key", "the host's key can be read again")

    def _look(self, before: Turn) -> Turn:
        vms, manager, now = self._config.vms.values(), self._connection.get(), self._monotonic()
        try:
            snapshot = self._observer.snapshot(vms)
        except SourceError as error:
            if self._conditions.begin("source", str(error), now):
                self._audit.record(Event.SOURCE_LOST, f"every VM keeps what it has: {describe(error)}")
            # A VM that the agent's own restart left down is rolled back even without a source.
            look = self._observer.look_at(without_source(error), vms, manager)
            self._restarts.ask(look)
            self._metrics.looked(look, self._store, with_source=False)
            self._show(look)
            return replace(before, delay=self._resync(), failure=error, is_settled=True)
        changed = self._changes.since_last(vms, snapshot)
        if changed and manager is not None and not before.owes_look:
            self._go_first(changed, snapshot, manager)
            return Turn(_LOOK_OWED_SECONDS, is_settled=False, owes_look=True, is_unsteady=before.is_unsteady)
        look = self._observer.look_at(snapshot, vms, manager)
        if counted := self._conditions.end("source", now):
            message = (
                f"source {self._config.source.path} can be read again; it was unavailable for {counted}"
            )
            self._audit.record(Event.SOURCE_BACK, message)
        unsettled = self._unsettled(look)
        if unsettled:
            return Turn(unsettled, is_settled=False, is_unsteady=before.is_unsteady)
        look, sealed = self._act_on(look)
        self._metrics.looked(look, self._store, with_source=True)
        self._show(look)
        self._reporter.report(look.decisions)
        if any(decision.vm.name in sealed and not decision.needs_rollout for decision in look.decisions):
            self._hints.put("sealed")  # to publish it; a restart causes a look anyway
        daemon.notify(f"STATUS={_summary(look)}")
        is_unsteady = any(decision.look_again for decision in look.decisions)
        if is_unsteady or self._connection.present is None:
            return Turn(_LOOK_AGAIN_SECONDS, is_unsteady=is_unsteady)
        waits = (decision.wait_seconds for decision in look.decisions if decision.wait_seconds)
        return Turn(min([self._resync(), *waits]))

    def _go_first(self, changed: Iterable[VmConfig], snapshot: Snapshot, manager: SystemManager) -> None:
        """Act on the VMs whose published values have changed, under one run id.

        If some VMs wait for others, or there are canaries, this looks at all VMs in their order.
        """
        names, run = {vm.name for vm in changed}, new_run()
        is_ordered = bool(self._config.rollout.canaries) or any(vm.after for vm in self._config.vms.values())
        vms = [self._config.vms[name] for name in self._restarts.order if is_ordered or name in names]
        look = self._observer.look_at(snapshot, vms, manager)
        # If no VM waits for another, each VM is restarted while the next one is sealed.
        for part in [look] if is_ordered else look.each():
            self._act_on(part, run)

    def _act_on(self, look: Look, run: str = "") -> tuple[Look, list[str]]:
        """Seal, and ask for restarts. Returns the look after limits, and the names of sealed VMs."""
        self._rollout.forget_ended(look)
        sealed = self._sealer.seal_due(look, run)
        look = self._pacer.hold_back(look)
        self._restarts.ask(look)
        return look, sealed

    def _unsettled(self, look: Look) -> float:
        """Seconds until the source has settled and sealing may start; 0.0 if nothing has to wait."""
        left = self._settler.wait(look.generation, look.content, self._monotonic())
        return left if any(decision.seal for decision in look.decisions) else 0.0

    def _show(self, look: Look) -> None:
        """Publish the state of all VMs, including what was just sealed."""
        pairs = zip(look.observed, look.decisions, strict=True)
        self._front.show(standing(observed, decision, self._store) for observed, decision in pairs)

    def _end_watch(self) -> None:
        self._watch.stop()  # the watch in use now: a reload makes another

    def _lose_store(self, error: StoreError) -> None:
        if self._conditions.begin("store", str(error), self._monotonic()):
            _log.error(
                "nothing is sealed or restarted until the store can be written", reason=describe(error)
            )

    def _tell_over(self, key: str, message: str) -> None:
        if counted := self._conditions.end(key, self._monotonic()):
            _log.info(message, unavailable_for=counted)

    def _on_job(self, unit: str) -> None:
        if not unit or any(vm.unit == unit for vm in self._config.vms.values()):
            self._hints.put("job")

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            self._hints.put("reload")
        else:
            self._stop.set()
            self._hints.put("stop")

    def _resync(self) -> float:
        period = self._config.source.resync_seconds
        if not self._watch.is_whole:
            period = min(period, LOOK_SECONDS)
        return period * random.uniform(1 - _JITTER, 1)  # noqa: S311 (spreads load, guards nothing)

    def _wait(self, turn: Turn) -> None:
        """Wait until a hint comes or the next turn is due, take all hints, and reload if one asks for it."""
        hints: set[str] = set()
        with suppress(queue.Empty):
            hints.add(self._hints.get(timeout=turn.delay))
            if turn.is_unsteady:
                # A unit that fails and is started again and again causes hints in its own rhythm. Without a
                # random pause, each look would find the unit just started.
                self._stop.wait(random.uniform(0, _LOOK_AGAIN_SECONDS / 2))  # noqa: S311 (guards nothing)
            while True:
                hints.add(self._hints.get_nowait())
        if "reload" in hints:
            self._reload()

    def _reload(self) -> None:
        daemon.notify(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")
        try:
            self._go_over_to(configuration.load(self._path), f"{self._path} is in force")
        except CredferryError as error:
            _log.error("reload failed; keeping the previous configuration", reason=describe(error))
        daemon.notify("READY=1")


def _summary(look: Look) -> str:
    counts = dict.fromkeys(State, 0)
    for decision in look.decisions:
        counts[decision.state] += 1
    return ", ".join(f"{count} {state.value}" for state, count in counts.items() if count)
