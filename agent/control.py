# SPDX-License-Identifier: MIT
"""The agent on the system bus: its states for others to read and follow, and operators' words for it.

Nothing here is done by the loop's thread. A thread of its own connects, publishes and owns the name, and
does so again when the bus was lost; methods run in threads that last as long as the call. Without a bus, or
where its policy lets nobody own the name, the agent does its work all the same.
"""

from __future__ import annotations

import queue
import threading
import time
from typing import TYPE_CHECKING, Any, TypeVar

import structlog

from agent import __version__
from agent.admission import Admission
from agent.bus import Bus, Caller, Error, ServedError, reason, signal, variants
from agent.conditions import Conditions
from agent.errors import BusError, CredferryError, OrderError, place
from agent.events import Event, Order
from agent.interface import (
    AGENT_INTERFACE,
    AGENT_XML,
    ERROR_PREFIX,
    ERRORS,
    NAME,
    PATH,
    VM_INTERFACE,
    VM_PROPERTIES,
    VM_XML,
    vm_path,
    vm_properties,
)
from agent.operators import Operator
from agent.report import describe
from agent.standing import steps

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from agent.journal import Fact
    from agent.orders import Orders
    from agent.standing import Standing

_T = TypeVar("_T")

_log = structlog.get_logger()
_RETRY_SECONDS, _RETRY_MAX_SECONDS = 1.0, 60.0
"""Doubled each time: dbus-daemon logs whom it refuses a name."""
_STOP_SECONDS = 2.0
_ABOUT_GENERATIONS = {
    Event.SEALED: "Sealed",
    Event.RESTARTED: "Restarted",
    Event.RESTART_FAILED: "RestartFailed",
    Event.ROLLED_BACK: "RolledBack",
}


class VmObject:
    """A VM's object; its properties are those of the last look."""

    dbus = VM_XML
    PropertiesChanged = signal()

    def __init__(self, properties: dict[str, Any]) -> None:
        self.properties = properties

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 (a property's type is the introspection data's)
        try:
            return self.__dict__["properties"][name]
        except KeyError:
            raise AttributeError(name) from None

    def update(self, properties: dict[str, Any]) -> None:
        """Take on other properties, and tell of those that have changed."""
        changed = {key: value for key, value in properties.items() if self.properties[key] != value}
        self.properties = properties
        if changed:
            self.PropertiesChanged(VM_INTERFACE, changed, [])


class AgentObject:
    """The agent's own object."""

    dbus = AGENT_XML
    Version = __version__
    PropertiesChanged = signal()
    Published = signal()
    Sealed = signal()
    Restarted = signal()
    RestartFailed = signal()
    RolledBack = signal()
    Refused = signal()
    InterfacesAdded = signal()
    InterfacesRemoved = signal()

    def __init__(self, orders: Orders, refresh: Callable[[], None]) -> None:
        self._orders = orders
        self._refresh = refresh
        self.vms: dict[str, VmObject] = {}

    @property
    def Configuration(self) -> str:  # noqa: N802 (its name on the bus; so are those that follow)
        """The configuration file in force."""
        return str(self._orders.config.file)

    @property
    def ConfigurationId(self) -> str:  # noqa: N802
        """Stands for what that file said when it was read."""
        return self._orders.config.id

    @property
    def VMs(self) -> dict[str, str]:  # noqa: N802
        """Each VM's state."""
        return {name: vm.properties["State"] for name, vm in list(self.vms.items())}

    def GetManagedObjects(self, _caller: Caller) -> dict[str, Any]:  # noqa: N802
        """All VMs with all of their properties."""
        return {vm_path(name): _packed(vm.properties) for name, vm in list(self.vms.items())}

    def Sync(self, _caller: Caller) -> None:  # noqa: N802
        """Look now; returns when that is done. Restarts that follow from it go on."""
        _served(self._orders.sync)
        self._refresh()  # who asked may read what was found

    def Plan(self, _caller: Caller) -> list[tuple[str, str, list[str], list[str]]]:  # noqa: N802
        """What a look would do now: per VM its state, steps, and reasons for not more."""
        return _served(
            lambda: [
                (each.vm.name, each.state.value, steps(each), list(each.reasons))
                for each in self._orders.plan().decisions
            ]
        )

    def Order(self, caller: Caller, order: str, vm: str, reason: str) -> str:  # noqa: N802
        """Give an order on a VM, by the verb's name, with a reason for the audit; its run."""
        return self._give(caller, order, vm, reason)

    def Rotate(self, caller: Caller, vm: str) -> None:  # noqa: N802
        """Have a VM restarted onto what is sealed, past windows and rates."""
        self._give(caller, Order.ROTATE, vm)

    def Rollback(self, caller: Caller, vm: str) -> None:  # noqa: N802
        """Have a VM put back on the generation before, until its secrets change."""
        self._give(caller, Order.ROLL_BACK, vm)

    def Hold(self, caller: Caller, vm: str) -> None:  # noqa: N802
        """Restart a VM no more until it is released."""
        self._give(caller, Order.HOLD, vm)

    def Release(self, caller: Caller, vm: str) -> None:  # noqa: N802
        """Release a held VM."""
        self._give(caller, Order.RELEASE, vm)

    def Retry(self, caller: Caller, vm: str) -> None:  # noqa: N802
        """Try again what failed for a VM."""
        self._give(caller, Order.RETRY, vm)

    def _give(self, caller: Caller, order: str, vm: str, reason: str = "") -> str:
        def give() -> str:
            if order not in set(Order):
                raise OrderError("UnknownOrder", f"{order!r}: no such order", hint=f"use {', '.join(Order)}")
            return self._orders.give(vm, Order(order), Operator.of_user(caller.uid, reason))

        run = _served(give)
        self._refresh()  # who gave it may wait for its end
        return run


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
        self._is_owned = False
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)

    def start(self) -> None:
        """See `Front`."""
        self._thread.start()

    def stop(self) -> None:
        """See `Front`."""
        self._stop.set()
        self._work.put(None)
        self._thread.join(timeout=_STOP_SECONDS)

    def show(self, standings: Iterable[Standing]) -> None:
        """See `Front`."""
        now = tuple(standings)
        self._work.put(lambda: self._show(now))

    def hear(self, fact: Fact) -> None:
        """See `Front`."""
        self._work.put(lambda: self._tell(fact))

    def _refresh(self) -> None:
        """Wait until objects are as the last look and the orders are."""
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
            except Exception as error:  # noqa: BLE001 (the bus may go at any moment; nothing of this may end)
                self._tell_lack(place(error))
        self._disappear()

    def _appear(self) -> None:
        """Be on the bus under our name; what stands in the way is told once."""
        try:
            if self._bus is None:
                self._bus = Bus("control-calls", lambda: self._work.put(self._disappear))
            self._publish(PATH, self._agent)
            for name, vm in self._agent.vms.items():
                self._publish(vm_path(name), vm)
            self._is_owned = self._bus.own(NAME)
        except BusError as error:
            self._disappear()
            self._tell_lack(describe(error))
        except Error as error:
            self._withdraw()
            self._tell_lack(f"{reason(error)}: is credferry's policy for the bus installed?")
        else:
            if not self._is_owned:
                self._withdraw()
                self._tell_lack(f"{NAME} belongs to another process: is a second agent running?")
            elif self._conditions.over("control", time.monotonic()):
                _log.info("the agent is on the bus", name=NAME)

    def _withdraw(self) -> None:
        """Publish nothing: who may hear signals is said for the name, and without it everybody may."""
        for registration in self._registrations.values():
            registration.unregister()
        self._registrations.clear()

    def _disappear(self) -> None:
        self._withdraw()
        bus, self._bus, self._is_owned = self._bus, None, False
        if bus is not None:
            bus.close()

    def _tell_lack(self, why: str) -> None:
        if self._conditions.met("control", why, time.monotonic()):
            _log.warning("the agent cannot be controlled over the bus, and goes on", reason=why)

    def _publish(self, path: str, target: object) -> None:
        if self._bus is not None:
            self._registrations[path] = self._bus.publish(path, target, self._serve)

    def _serve(self, caller: Caller, answer: Callable[[], None]) -> bool:
        """Answer a call in a thread of its own, where the caller has not too many under way already."""
        if not self._admission.admit(caller.uid):
            return False

        def run() -> None:
            try:
                answer()
            finally:
                self._admission.leave(caller.uid)

        threading.Thread(target=run, name="control-call", daemon=True).start()
        return True

    def _show(self, standings: tuple[Standing, ...]) -> None:
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
            self._agent.InterfacesAdded(vm_path(name), _packed(properties))
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


def _packed(properties: dict[str, Any]) -> dict[str, Any]:
    return {VM_INTERFACE: variants(VM_PROPERTIES, properties)}


def _served(word: Callable[[], _T]) -> _T:
    """Do as told; what is wrong is raised as a D-Bus error with its remedy."""
    try:
        return word()
    except OrderError as error:
        raise ServedError(ERROR_PREFIX + error.kind, describe(error)) from None
    except CredferryError as error:
        kind = next((name for name, each in ERRORS.items() if isinstance(error, each)), "Failed")
        raise ServedError(ERROR_PREFIX + kind, describe(error)) from None
    except Exception as error:  # noqa: BLE001 (an exception's own text may quote a value; its place may not)
        raise ServedError(f"{ERROR_PREFIX}Internal", place(error)) from None
