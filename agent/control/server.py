# SPDX-License-Identifier: MIT
"""The agent's service on the system bus: it publishes the state of VMs and accepts operators' orders.

The loop's thread does none of this work. A separate thread connects, publishes and owns the name, and does
so again after the bus was lost. Each call runs in a thread of its own, which ends with the call. Without a
bus, or if the bus policy refuses the name, the agent continues its other work.
"""

from __future__ import annotations

import queue
import threading
import time
from typing import TYPE_CHECKING, Any

from credferry.agent.audit.events import Event
from credferry.agent.bus.connection import Bus, Error, reason
from credferry.agent.bus.published import Caller, ObjectServer
from credferry.agent.control.admission import Admission
from credferry.agent.control.interface import (
    AGENT_INTERFACE,
    NAME,
    PATH,
    VM_INTERFACE,
    vm_path,
)
from credferry.agent.control.objects import AgentObject, VmObject, packed, vm_properties
from credferry.agent.errors import BusError, describe, place
from credferry.agent.log import Conditions
from credferry.agent.messages import Messages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from credferry.agent.audit.writer import Fact
    from credferry.agent.bus.published import Target
    from credferry.agent.reconcile.status import VmStatus
    from credferry.agent.rollout.orders import Orders


_log = Messages()
_RETRY_SECONDS, _RETRY_MAX_SECONDS = 1.0, 60.0
"""The pause doubles after each failure: dbus-daemon logs each refusal of a name."""
_STOP_SECONDS = 2.0
_ABOUT_GENERATIONS = {
    Event.SEALED: "Sealed",
    Event.RESTARTED: "Restarted",
    Event.RESTART_FAILED: "RestartFailed",
    Event.PUSHED: "Pushed",
    Event.PUSH_FAILED: "PushFailed",
    Event.ROLLED_BACK: "RolledBack",
}


class Control:
    """A `Front` on the system bus."""

    def __init__(self, orders: Orders) -> None:
        self._orders = orders
        self._agent = AgentObject(orders, self._refresh)
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._admission = Admission()
        self._conditions = Conditions()
        self._registrations: dict[str, Any] = {}
        self._bus: Bus | None = None
        self._objects: ObjectServer | None = None
        self._is_owned = False
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)

    def start(self) -> None:
        """See `Front`."""
        self._thread.start()

    def settle(self) -> None:
        """See `Front`."""
        self._refresh()  # the thread does it after its first attempt, and after what was shown before

    def stop(self) -> None:
        """See `Front`."""
        self._stop.set()
        self._work.put(None)
        self._thread.join(timeout=_STOP_SECONDS)

    def show(self, standings: Iterable[VmStatus]) -> None:
        """See `Front`."""
        now = tuple(standings)
        self._work.put(lambda: self._show(now))

    def hear(self, fact: Fact) -> None:
        """See `Front`."""
        self._work.put(lambda: self._tell(fact))

    def _refresh(self) -> None:
        """Wait until the objects show the last look and the present orders, at most `_STOP_SECONDS`."""
        done = threading.Event()

        def refresh() -> None:
            for name, vm in self._agent.vms.items():
                vm.update(vm.properties | self._of_orders(name))
            done.set()

        self._work.put(refresh)
        done.wait(_STOP_SECONDS)

    def _of_orders(self, name: str) -> dict[str, str]:
        given = self._orders.given(name)
        return {
            "Order": given.order.value if given is not None else "",
            "OrderResult": self._orders.result(name),
        }

    def _run(self) -> None:
        retry_at, pause = 0.0, _RETRY_SECONDS
        while not self._stop.is_set():
            if not (self._bus is not None and self._is_owned) and time.monotonic() >= retry_at:
                self._appear()
                pause = _RETRY_SECONDS if self._is_owned else min(2 * pause, _RETRY_MAX_SECONDS)
                retry_at = time.monotonic() + pause
            try:
                left = None if self._is_owned else max(0.0, retry_at - time.monotonic())
                work = self._work.get(timeout=left)
                if work is not None:
                    work()
            except queue.Empty:
                continue
            except Exception as error:  # noqa: BLE001 (the bus may go at any moment; this thread must not end)
                self._tell_lack(place(error))
        self._disappear()

    def _appear(self) -> None:
        """Connect, publish all objects, and take the name. Reports once what prevents this."""
        try:
            if self._bus is None:
                self._bus = Bus("control-calls", lambda: self._work.put(self._disappear))
                self._objects = ObjectServer(self._bus, self._serve)
            self._publish(PATH, self._agent)
            for name, vm in self._agent.vms.items():
                self._publish(vm_path(name), vm)
            self._is_owned = self._bus.own(NAME)
        except BusError as error:
            self._disappear()
            self._tell_lack(describe(error))
        except Error as error:
            self._withdraw()
            self._tell_lack(f"{reason(error)}: check that credferry's policy for the bus is installed")
        else:
            if not self._is_owned:
                self._withdraw()
                self._tell_lack(f"{NAME} belongs to another process: check whether a second agent runs")
            elif self._conditions.end("control", time.monotonic()):
                _log.info("the agent is on the bus", name=NAME)

    def _withdraw(self) -> None:
        """Unpublish all objects.

        The bus policy limits who receives the signals only while the agent owns its name.
        """
        for registration in self._registrations.values():
            registration.unregister()
        self._registrations.clear()

    def _disappear(self) -> None:
        self._withdraw()
        bus, self._bus, self._objects, self._is_owned = self._bus, None, None, False
        if bus is not None:
            bus.close()

    def _tell_lack(self, why: str) -> None:
        if self._conditions.begin("control", why, time.monotonic()):
            _log.warning(
                "the agent cannot be controlled over the bus; it continues to seal and restart",
                reason=why,
            )

    def _publish(self, path: str, target: Target) -> None:
        if self._objects is not None:
            self._registrations[path] = self._objects.publish(path, target)

    def _serve(self, caller: Caller, answer: Callable[[], Callable[[], None]]) -> bool:
        """Answer a call in a thread of its own. Returns False if too many calls are under way.

        Also where the system gives no thread: the caller may try again, and the limits stay as they are.
        """
        if not self._admission.admit(caller.uid):
            return False

        def run() -> None:
            try:
                send = answer()
            finally:
                # Before the answer is sent: the caller's next call may come at once.
                self._admission.leave(caller.uid)
            send()

        try:
            threading.Thread(target=run, name="control-call", daemon=True).start()
        except RuntimeError:  # the unit or the host has as many threads as it may
            self._admission.leave(caller.uid)
            return False
        return True

    def _show(self, standings: tuple[VmStatus, ...]) -> None:
        before = self._agent.VMs
        for name in self._agent.vms.keys() - {each.name for each in standings}:
            del self._agent.vms[name]
            registration = self._registrations.pop(vm_path(name), None)
            if registration is not None:
                registration.unregister()
            self._agent.InterfacesRemoved(vm_path(name), [VM_INTERFACE])
        for standing in standings:
            name = standing.name
            properties = vm_properties(standing) | self._of_orders(name)
            vm = self._agent.vms.get(name)
            if vm is not None:
                vm.update(properties)
                continue
            self._agent.vms[name] = VmObject(properties)
            if self._is_owned:
                self._publish(vm_path(name), self._agent.vms[name])
            self._agent.InterfacesAdded(vm_path(name), packed(properties))
        if self._agent.VMs != before:
            self._agent.PropertiesChanged(AGENT_INTERFACE, {"VMs": self._agent.VMs}, [])

    def _tell(self, fact: Fact) -> None:
        match fact.event:
            case Event.PUBLISHED:
                self._agent.Published(fact.vm, fact.run)
            case Event.REFUSED:
                self._agent.Refused(fact.vm)
            case event if event in _ABOUT_GENERATIONS:
                getattr(self._agent, _ABOUT_GENERATIONS[event])(fact.vm, fact.generation or 0, fact.run)
