# SPDX-License-Identifier: MIT
"""The agent's objects on D-Bus: one for the agent, one for each VM."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from credferry.agent import __version__
from credferry.agent.audit.events import Order
from credferry.agent.bus.connection import Caller, ServedError, signal, variants
from credferry.agent.bus.names import ERROR_PREFIX
from credferry.agent.control.interface import (
    AGENT_XML,
    ERRORS,
    VM_INTERFACE,
    VM_PROPERTIES,
    VM_XML,
    vm_path,
)
from credferry.agent.errors import (
    CredferryError,
    OrderError,
    describe,
    place,
)
from credferry.agent.reconcile.status import steps
from credferry.agent.rollout.operators import Operator

if TYPE_CHECKING:
    from collections.abc import Callable

    from credferry.agent.reconcile.status import VmStatus
    from credferry.agent.rollout.orders import Orders


_T = TypeVar("_T")


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
        return {vm_path(name): packed(vm.properties) for name, vm in list(self.vms.items())}

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


def packed(properties: dict[str, Any]) -> dict[str, Any]:
    """Return the properties of a VM as the bus takes them, by their interface."""
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


def vm_properties(vm: VmStatus) -> dict[str, Any]:
    """The properties of a VM's object, by `VM_PROPERTIES`, but for those of its orders."""
    return {
        "Name": vm.name,
        "Unit": vm.unit,
        "UnitState": vm.unit_state,
        "State": vm.state.value,
        "Reasons": list(vm.reasons),
        "Since": vm.since,
        "Sealed": vm.sealed,
        "Running": vm.running,
        "Held": vm.is_held,
        "LastResult": vm.last_result,
        "System": vm.system,
    }
