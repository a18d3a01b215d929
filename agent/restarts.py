# SPDX-License-Identifier: MIT
"""Restarts as the loop asks for them: each in a thread, by an operator's order or by what is due."""

from __future__ import annotations

import queue
from contextlib import suppress
from typing import TYPE_CHECKING

import structlog

from agent.config import restart_order
from agent.dispatch import Dispatcher
from agent.errors import OrderError
from agent.events import Order
from agent.reconcile import State
from agent.report import describe

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from agent.config import Config
    from agent.connection import Connection
    from agent.observe import Look
    from agent.orders import Given, Orders
    from agent.rollout import Rollout
    from agent.store import Store
    from agent.units import SystemManager

_STOP_SECONDS = 10.0
_log = structlog.get_logger()


class Restarts:
    """``ended`` is called, in the thread, after each; it returns at once. ``stop`` ends waiting early."""

    def __init__(  # noqa: PLR0917 (what it works with, once)
        self,
        config: Config,
        connection: Connection,
        orders: Orders,
        stop: threading.Event,
        ended: Callable[[], None],
        hire: Callable[[Callable[[str], None], int, float], Dispatcher] = Dispatcher,
    ) -> None:
        self._connection = connection
        self._orders = orders
        self._stop = stop
        self._ended = ended
        self._errors: queue.SimpleQueue[BaseException] = queue.SimpleQueue()
        limits = config.rollout
        self._dispatcher = hire(self._restart, limits.concurrency, limits.slot_seconds)

    def use(self, config: Config, store: Store, rollout: Rollout) -> None:
        """Another configuration is in force; what is under way goes on as it began."""
        self._order = restart_order(config.vms)
        self._store = store
        self._rollout = rollout
        self._dispatcher.adjust(config.rollout.concurrency, config.rollout.slot_seconds)

    @property
    def order(self) -> list[str]:
        """VMs, each after those that it is to be restarted after."""
        return self._order

    def start(self) -> None:
        """Start the threads."""
        self._dispatcher.start()

    def stop(self) -> None:
        """Begin nothing more; what has begun is waited for a few seconds, and is finished by a later run."""
        self._stop.set()
        self._connection.close()
        self._dispatcher.stop(_STOP_SECONDS)

    def ask(self, look: Look) -> None:
        """Have those restarted for which a look, or an operator, says so; without systemd nobody is."""
        if self._connection.present is not None:
            due = {decision.vm.name for decision in look.decisions if decision.needs_rollout}
            due |= self._orders.pending()
            self._dispatcher.submit(name for name in self._order if name in due)

    def relieve(self) -> float:
        """See `Dispatcher.relieve`."""
        return self._dispatcher.relieve()

    def raise_error(self) -> None:
        """Raise what a thread could not handle, if anything."""
        with suppress(queue.Empty):
            raise self._errors.get_nowait()

    def _restart(self, name: str) -> None:
        rollout, manager = self._rollout, self._connection.present
        try:
            if manager is not None and not self._stop.is_set() and name in self._order:
                given = self._orders.given(name)
                if given is None:
                    state = rollout.restart(name, manager)
                else:
                    state = self._carry_out(name, given, rollout, manager)
                _log.info("rollout", vm=name, state=state.value)
        except BaseException as error:  # noqa: BLE001 (handed to the loop, which raises it)
            self._dispatcher.forget_waiting()
            self._errors.put(error)
        finally:
            self._ended()

    def _carry_out(self, name: str, given: Given, rollout: Rollout, manager: SystemManager) -> State:
        """Carry out an operator's order; a later look asks again where something is to be sealed first."""

        def stands() -> bool:
            return self._orders.given(name) is given

        try:
            if given.order is Order.ROTATE:
                state = rollout.rotate(name, manager, given.moment, given.run, stands)
            else:
                state = rollout.go_back(name, manager, given.run, stands)
        except OrderError as error:
            self._orders.drop(name, given, describe(error))
            return State.CHANGING
        if state is None:
            return State.SEAL_DUE
        self._orders.carried_out(name, given, "" if state is not State.FAILED else self._why(name))
        return state

    def _why(self, name: str) -> str:
        attempt = self._store.attempt(name)
        return attempt.reason if attempt is not None else "its restart failed"
