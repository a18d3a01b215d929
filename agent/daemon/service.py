# SPDX-License-Identifier: MIT
"""The daemon's loop: waits for hints and timers, takes turns, and switches to a new configuration or key.

The loop never waits for a VM. A turn looks at all VMs. After a change in the source, one turn first acts on
the change, and the next turn looks at all VMs. Each turn ends with a message to systemd's watchdog.

One job: the turns of the loop, and what they work with.
"""

from __future__ import annotations

import gc
import signal
import time
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from systemd import daemon

from credferry.agent.audit.events import Event
from credferry.agent.audit.writer import KEY_CHANGE, Audit
from credferry.agent.config import loading as configuration
from credferry.agent.daemon.cycle import JITTER, Cycle, Turn
from credferry.agent.daemon.fleet import Fleet
from credferry.agent.daemon.hints import Hints
from credferry.agent.daemon.host_key import HostKey
from credferry.agent.daemon.parts import Connect, Parts
from credferry.agent.daemon.publisher import Front, no_front
from credferry.agent.daemon.textfile import Textfile
from credferry.agent.errors import BusError, KeyFileError, SealError, StoreError, describe
from credferry.agent.log import Conditions
from credferry.agent.messages import Messages
from credferry.agent.reconcile import rekey
from credferry.agent.rollout.orders import Orders
from credferry.agent.rollout.pacing import RestartPolicyGate
from credferry.agent.rollout.session import Session
from credferry.agent.rollout.workers import RestartPool
from credferry.agent.source.watches import Watches
from credferry.agent.store.opening import open_store, present_key
from credferry.agent.systemd.connection import RETRY_SECONDS, Connection

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from credferry.agent.config.model import Config
    from credferry.agent.daemon.fleet import Opened
    from credferry.agent.sealing.keys import CredentialKey
    from credferry.agent.store.generations import Store

_log = Messages()
_STORE_RETRY_SECONDS = 5.0
_UNSENT_SECONDS = 5.0
"""How often the agent retries to send a record that journald has not taken."""


class Service:
    """One run of the daemon over one configuration file."""

    def __init__(
        self,
        path: Path,
        connect: Connect,
        appear: Callable[[Orders], Front] = no_front,
        parts: Parts | None = None,
    ) -> None:
        self._path = path
        self._parts = Parts() if parts is None else parts
        self._monotonic = self._parts.clock.monotonic
        self._stop = self._parts.stop()
        self._hints = Hints()
        self._conditions = Conditions()
        self._connection = Connection(lambda: connect(self._on_job), self._conditions, self._monotonic)
        self._metrics = Textfile()
        self._orders = Orders(self._hints.put, self._monotonic)
        self._front = appear(self._orders)
        self._is_announced = False
        self._is_taken_over = False
        self._sender = self._parts.sender()
        self._audit_keys: dict[str, CredentialKey] = {}
        self._host_key = HostKey()
        self._fleet = Fleet(self._parts, self._hints.put)
        config = configuration.load(path)
        ended = partial(self._hints.put, "rollout")
        self._restarts = RestartPool(
            config, self._connection, self._orders, self._stop, ended, self._parts.hire
        )
        identity = rekey.identity(Path(config.host_key))  # before the key is read or made
        store = open_store(config)
        self._use(config, store, self._audit_of(config, store), self._fleet.join(config))
        self._host_key.use(identity)

    def run(self) -> None:
        """Run until SIGTERM or SIGINT; SIGHUP reloads the configuration.

        Raises `ConfigurationError` and `KeyFileError`, which end the daemon. For a condition that may end by
        itself, such as a missing source or bus or a full disk, the daemon reports it once and retries.
        """
        with ExitStack() as stack:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                stack.callback(signal.signal, number, signal.signal(number, self._on_signal))
            self._watch.start()
            stack.callback(lambda: self._watch.stop())  # noqa: PLW0108 (a reload makes another watch)
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
                if "reload" in self._hints.wait(turn.delay, is_unsteady=turn.is_unsteady):
                    self._reload()
            daemon.notify("STOPPING=1")
        self._fleet.stop()
        self._orders.abandon()
        with suppress(StoreError):  # already reported, and no reason not to end
            message = "credferry stops; VMs keep running"
            self._session.audit.record(Event.AGENT_STOPPED, message)

    def _audit_of(self, config: Config, store: Store) -> Audit:
        self._metrics.use(config.metrics)  # before the audit's first record
        listeners = (self._metrics.hear, self._front.hear)
        # One sender for the whole run: a reload must not lose the records that it could not send yet.
        return Audit(store, self._sender, listeners, partial(present_key, config), self._audit_keys)

    def _use(self, config: Config, store: Store, audit: Audit, opened: Opened | None) -> None:
        slots = self._fleet.slots(config, store, opened)
        pacer = RestartPolicyGate(config, store, self._parts.clock, slots)
        session = Session.of(config, store, audit, pacer, stop=self._stop, monotonic=self._monotonic)
        self._session = session
        self._restarts.use(config, store, session.rollout)
        self._watch = Watches(config, self._parts.watch, self._hints.put)
        self._orders.use(session, lambda: self._connection.present)
        self._cycle = Cycle(
            session,
            self._connection,
            self._conditions,
            self._restarts,
            self._metrics,
            self._front,
            self._watch,
            self._hints.put,
            self._monotonic,
            self._fleet.reports,
        )

    def _go_over_to(self, config: Config, news: str = "") -> None:
        """Switch to a configuration, if ``news`` announces a new one, and to the host's present key.

        If the key is another one, the sealed generations and the records about VMs are moved to it. Raises
        `KeyFileError` and `StoreError`; in that case nothing has changed.
        """
        identity = rekey.identity(Path(config.host_key))  # before the key is read: a later key differs
        store, opened = open_store(config), self._fleet.join(config)
        audit = self._audit_of(config, store)
        # Also VMs that only one of the two configurations has: they may come back.
        is_other_key = self._host_key.renew([config, self._session.config], self._session.store, store)
        if is_other_key:
            audit.record(Event.HOST_KEY, KEY_CHANGE)
        if news:
            audit.record(Event.CONFIGURATION, news)
        if news or is_other_key:
            self._watch.stop()
            self._use(config, store, audit, opened)
            self._watch.start()
        self._host_key.use(identity)

    def _turn(self, before: Turn) -> Turn:
        """Look at the change or at all VMs, and act on the result."""
        self._orders.check.begin()
        try:
            self._restarts.raise_error()
            self._session.audit.catch_up()
            self._announce()
            self._take_over()
            self._heed_host_key()
            self._heed_tpm()
            turn = self._cycle.run(before)
            if turn.owes_look:
                # The restart threads need the processor now. The next look does the rest.
                daemon.notify("WATCHDOG=1")
                return turn
            self._host_key.raise_failure()
            turn = replace(turn, delay=min(turn.delay, self._restarts.relieve()))
        except BusError as error:
            self._connection.lose(error)
            turn = replace(before, failure=error, delay=RETRY_SECONDS)
        except StoreError as error:
            self._lose_store(error)
            turn = replace(before, failure=error, delay=_STORE_RETRY_SECONDS)
        else:
            if not self._restarts.lacks_store:
                self._tell_over("store", "the store can be written again")
        if turn.failure is not None or turn.is_settled:
            self._orders.check.end(turn.failure)
        config = self._session.config
        period = config.resync_seconds * (1 - JITTER)
        self._metrics.keep(config.metrics, self._conditions, period, self._monotonic())
        daemon.notify("WATCHDOG=1")
        return replace(turn, delay=min(turn.delay, _UNSENT_SECONDS)) if self._sender.is_behind else turn

    def _announce(self) -> None:
        if not self._is_announced:
            self._session.audit.repeat_last()
            self._session.audit.record(Event.AGENT_STARTED, f"credferry watches {self._watch.places}")
            self._is_announced = True

    def _take_over(self) -> None:
        """Convert a store of an earlier form to the present form, before any decision uses it."""
        if not self._is_taken_over:
            self._is_taken_over = self._session.take_over(self._connection.get())

    def _heed_host_key(self) -> None:
        """Switch to the host's key if it is another one: PID 1 opens nothing sealed with the old key."""
        if self._host_key.is_other(self._session.config):
            try:
                self._go_over_to(self._session.config)
            except KeyFileError as error:
                if self._conditions.begin("key", str(error), self._monotonic()):
                    _log.error("cannot read the new host key; keeping the old one", reason=describe(error))
            else:
                self._tell_over("key", "the agent uses the new host key")
        # A failure is reported after the work on the other VMs.
        self._host_key.catch_up([self._session.config], self._session.store)

    def _heed_tpm(self) -> None:
        """Keep the store sealed as configured, while the host's TPM changes or cannot be used."""
        try:
            self._session.resealing.keep(self._session.config.vms)
        except SealError as error:
            if self._conditions.begin("tpm", str(error), self._monotonic()):
                _log.error("cannot seal; VMs keep what they have", reason=describe(error))
        else:
            self._tell_over("tpm", "the agent can seal again")

    def _lose_store(self, error: StoreError) -> None:
        if self._conditions.begin("store", str(error), self._monotonic(), of_several=True):
            _log.error("cannot use part of the store; the work that needs it waits", reason=describe(error))

    def _tell_over(self, key: str, message: str) -> None:
        if counted := self._conditions.end(key, self._monotonic()):
            _log.info(message, unavailable_for=counted)

    def _on_job(self, unit: str) -> None:
        if not unit or any(vm.unit == unit for vm in self._session.config.vms.values()):
            self._hints.put("job")

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            self._hints.put("reload")
        else:
            self._stop.set()
            self._hints.put("stop")

    def _reload(self) -> None:
        daemon.notify(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")
        news = f"credferry now uses {self._path}"
        failure = self._orders.reload.do(lambda: self._go_over_to(configuration.load(self._path), news))
        if failure is not None:
            _log.error("reload failed; keeping the previous configuration", reason=describe(failure))
        daemon.notify("READY=1")
