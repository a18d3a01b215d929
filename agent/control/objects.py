# SPDX-License-Identifier: MIT
"""The agent's objects on D-Bus: one for the agent, one for each VM."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from credferry.agent import __version__
from credferry.agent.audit.events import Order
from credferry.agent.bus.connection import variants
from credferry.agent.bus.names import ERROR_PREFIX
from credferry.agent.bus.published import Caller, ServedError, signal
from credferry.agent.control.interface import (
    AGENT_XML,
    ERRORS,
    INTERNAL,
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
    from collections.abc import Callable, Mapping

    from credferry.agent.reconcile.status import VmStatus
    from credferry.agent.rollout.orders import Orders


_T = TypeVar("_T")


class VmObject:
    """D-Bus object of a VM. Its properties show the last look and the VM's orders."""

    dbus = VM_XML
    PropertiesChanged = signal()

    def __init__(self, properties: dict[str, Any]) -> None:
        self.properties = properties

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 (the introspection data gives each property's type)
        try:
            return self.__dict__["properties"][name]
        except KeyError:
            raise AttributeError(name) from None

    def all_properties(self) -> Mapping[str, Any]:
        """See `Target`."""
        return self.properties

    def update(self, properties: dict[str, Any]) -> None:
        """Replace the properties, and emit a signal with those that have changed."""
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
    Pushed = signal()
    PushFailed = signal()
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
    def ConfigurationId(self) -> str:  # noqa: N802 (a name on D-Bus)
        """Identifies the content of that file at the time when the agent read it."""
        return self._orders.config.id

    @property
    def VMs(self) -> dict[str, str]:  # noqa: N802 (a name on D-Bus)
        """Each VM's state."""
        return {name: vm.properties["State"] for name, vm in list(self.vms.items())}

    def all_properties(self) -> Mapping[str, Any]:
        """See `Target`."""
        config = self._orders.config
        return {
            "Version": self.Version,
            "Configuration": str(config.file),
            "ConfigurationId": config.id,
            "VMs": self.VMs,
        }

    def GetManagedObjects(self, _caller: Caller) -> dict[str, Any]:  # noqa: N802 (a name on D-Bus)
        """All VMs with all of their properties."""
        return {vm_path(name): packed(vm.properties) for name, vm in list(self.vms.items())}

    def Sync(self, _caller: Caller) -> None:  # noqa: N802 (a name on D-Bus)
        """Look now, and return when the look is done. Restarts that it causes may still run then."""
        _served(self._orders.check.ask)
        self._refresh()  # the caller can then read the result

    def Reload(self, _caller: Caller) -> None:  # noqa: N802 (a name on D-Bus)
        """Read the configuration again, and return when its VMs are published. An error keeps the former."""
        _served(self._orders.reload.ask)
        with suppress(CredferryError):  # such as a missing source, which does not concern the file
            self._orders.check.ask()
        self._refresh()

    def Plan(self, _caller: Caller) -> list[tuple[str, str, list[str], list[str]]]:  # noqa: N802 (a name on D-Bus)
        """What a look would do now: for each VM its state, the steps, and reasons why there are no more."""
        return _served(
            lambda: [
                (each.vm.name, each.state.value, steps(each), list(each.shown))
                for each in self._orders.plan().decisions
            ]
        )

    def Order(self, caller: Caller, order: str, vm: str, reason: str) -> str:  # noqa: N802 (a name on D-Bus)
        """Give an order, named as its verb, with a reason for the audit. Returns the order's run id."""
        return self._give(caller, order, vm, reason)

    def Approve(self, caller: Caller, vm: str, change: str, reason: str) -> str:  # noqa: N802 (a name on D-Bus)
        """Approve what is sealed for a VM. With ``change``, only if it is of the run that begins so."""
        return self._give(caller, Order.APPROVE, vm, reason, change)

    def OrderWithoutSlot(self, caller: Caller, order: str, vm: str, reason: str) -> str:  # noqa: N802 (a name on D-Bus)
        """As ``Order``, but a restart, push or rollback does not ask the VM's fleet for a slot."""
        return self._give(caller, order, vm, reason, with_slot=False)

    def Rotate(self, caller: Caller, vm: str) -> None:  # noqa: N802 (a name on D-Bus)
        """Order a restart of a VM onto the sealed generation, regardless of windows and rates."""
        self._give(caller, Order.ROTATE, vm)

    def Rollback(self, caller: Caller, vm: str) -> None:  # noqa: N802 (a name on D-Bus)
        """Order a rollback of a VM to the previous generation, which it keeps until its secrets change."""
        self._give(caller, Order.ROLL_BACK, vm)

    def Hold(self, caller: Caller, vm: str) -> None:  # noqa: N802 (a name on D-Bus)
        """Order that a VM is not restarted until it is released."""
        self._give(caller, Order.HOLD, vm)

    def Release(self, caller: Caller, vm: str) -> None:  # noqa: N802 (a name on D-Bus)
        """Release a held VM."""
        self._give(caller, Order.RELEASE, vm)

    def Retry(self, caller: Caller, vm: str) -> None:  # noqa: N802 (a name on D-Bus)
        """Order a retry of what failed for a VM."""
        self._give(caller, Order.RETRY, vm)

    def _give(
        self,
        caller: Caller,
        order: str,
        vm: str,
        reason: str = "",
        change: str = "",
        *,
        with_slot: bool = True,
    ) -> str:
        def give() -> str:
            if order not in set(Order):
                raise OrderError(
                    "UnknownOrder", f"{order!r}: there is no such order", hint=f"use {', '.join(Order)}"
                )
            operator = Operator.of_user(caller.uid, reason)
            return self._orders.give(vm, Order(order), operator, change, with_slot=with_slot)

        run = _served(give)
        self._refresh()  # the caller can then wait for the order's end
        return run


def packed(properties: dict[str, Any]) -> dict[str, Any]:
    """Return the properties of a VM as D-Bus variants, under the name of their interface."""
    return {VM_INTERFACE: variants(VM_PROPERTIES, properties)}


def _served(word: Callable[[], _T]) -> _T:
    """Call ``word``, and raise its errors as D-Bus errors that name the remedy."""
    try:
        return word()
    except OrderError as error:
        raise ServedError(ERROR_PREFIX + error.kind, describe(error)) from None
    except CredferryError as error:
        kind = next((name for name, each in ERRORS.items() if isinstance(error, each)), "Failed")
        raise ServedError(ERROR_PREFIX + kind, describe(error)) from None
    except Exception as error:  # noqa: BLE001 (an exception's own text may quote a value; its place may not)
        raise ServedError(ERROR_PREFIX + INTERNAL, place(error)) from None


def vm_properties(vm: VmStatus) -> dict[str, Any]:
    """The properties that `VM_PROPERTIES` lists, except those about the VM's orders."""
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
        "Arrived": vm.arrived or "",
        "Next": vm.next_way or "",
        "NextReason": vm.next_reason,
    }
