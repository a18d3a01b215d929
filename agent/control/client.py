# SPDX-License-Identifier: MIT
"""Client of the running agent on the system bus, for verbs that leave their work to the agent."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

from credferry.agent.bus.connection import CALL_SECONDS, Bus, Error, remote_error
from credferry.agent.bus.names import BUS, ERROR_PREFIX, MANAGER_INTERFACE, PROPERTIES_INTERFACE
from credferry.agent.control.interface import (
    AGENT_INTERFACE,
    ERRORS,
    INTERNAL,
    NAME,
    PATH,
    VM_INTERFACE,
    vm_path,
)
from credferry.agent.errors import AgentError, BusError, CredferryError, OrderError
from credferry.agent.reconcile.decision import State
from credferry.agent.reconcile.status import PUSH_UNDER_WAY, UNDER_WAY

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from credferry.agent.audit.events import Order
    from credferry.agent.config.model import Config

_ANSWER_SECONDS = 3.0
"""An agent that does not answer within this time cannot be asked."""
_CALL_SECONDS = 2 * CALL_SECONDS + 10.0
"""Longer than the agent takes for a reload and the check after it."""
_LOOK_AGAIN_SECONDS = 0.2
_LOOK_AT_UNIT = "see: systemctl status credferry.service"

_NO_OWNER = "org.freedesktop.DBus.Error.NameHasNoOwner"
_DENIED = "org.freedesktop.DBus.Error.AccessDenied"
_TOO_MANY = "org.freedesktop.DBus.Error.LimitsExceeded"
_NO_OBJECT = {f"org.freedesktop.DBus.Error.{kind}" for kind in ("UnknownObject", "UnknownMethod")}


class NoObjectError(BusError):
    """The agent has no such object."""


class RemoteAgent:
    """Connection to the agent process that runs now, not to a later one. Close it, or use it with ``with``.

    Every method raises `BusError` if the agent does not answer, else the error that the agent returns.
    """

    def __init__(self, bus: Bus, owner: str) -> None:
        self._bus = bus
        self._owner = owner

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._bus.close()

    def call(self, method: str, *words: str) -> Any:  # noqa: ANN401 (as the interface says)
        """Call a method of the agent. All arguments are strings."""
        arguments = (f"({'s' * len(words)})", words)
        return self._call(PATH, f"{AGENT_INTERFACE}.{method}", arguments)

    def vm(self, name: str) -> dict[str, Any]:
        """The properties of a VM."""
        try:
            arguments = ("(s)", (VM_INTERFACE,))
            return dict(self._call(vm_path(name), f"{PROPERTIES_INTERFACE}.GetAll", arguments)[0])
        except NoObjectError:
            raise OrderError(
                "UnknownVm",
                f"{name}: the agent's configuration no longer has this VM, so the agent dropped its orders",
                hint="see: credferry audit --records",
            ) from None

    def vms(self) -> list[dict[str, Any]]:
        """The properties of all VMs."""
        objects = self._call(PATH, f"{MANAGER_INTERFACE}.GetManagedObjects")[0]
        return [interfaces[VM_INTERFACE] for interfaces in objects.values()]

    def order(self, order: Order, vm: str, reason: str, *, with_slot: bool = True) -> None:
        """Give an order for a VM. Without ``with_slot``, its fleet is not asked for a slot."""
        self.call("Order" if with_slot else "OrderWithoutSlot", order.value, vm, reason)

    def approve(self, vm: str, change: str, reason: str) -> None:
        """Approve what is sealed for a VM, if it is of this run, or any if that is empty."""
        self.call("Approve", vm, change, reason)

    def carry_out(
        self,
        order: Order,
        name: str,
        reason: str,
        tell: Callable[[str], None] = lambda _: None,
        *,
        with_slot: bool = True,
    ) -> dict[str, Any]:
        """Give an order for a VM, wait until it is carried out, and return the VM's properties.

        ``tell`` is called with a line about the wait, again and again.
        """
        self.order(order, name, reason, with_slot=with_slot)
        while self.vm(name)["Order"]:
            tell(f"{name}: {order.value} is under way")
            time.sleep(_LOOK_AGAIN_SECONDS)
        # The properties at the order's end may come from a look that began before that end.
        with suppress(CredferryError):  # such as a missing source, which does not concern the order
            self.call("Sync")
        return self.vm(name)

    def settle(
        self, names: list[str], tell: Callable[[str], None] = lambda _: None
    ) -> dict[str, dict[str, Any]]:
        """Make the agent look, and wait for the restarts of these VMs that are due.

        Returns the properties of each VM. ``tell`` is called with a line about the wait, again and again.
        """
        tell("the agent looks")
        self.call("Sync")
        while True:
            found = {name: self.vm(name) for name in names}
            left = [name for name, vm in found.items() if _is_under_way(vm)]
            if not left:
                return found
            tell(f"{len(found) - len(left)} of {len(found)} VMs are done; waiting for {left[0]}")
            time.sleep(_LOOK_AGAIN_SECONDS)

    def _call(self, path: str, method: str, arguments: tuple[str, tuple[Any, ...]] = ("()", ())) -> Any:  # noqa: ANN401 (as the interface says)
        try:
            return self._bus.call(self._owner, path, method, arguments, _CALL_SECONDS).unpack()
        except Error as error:
            raise _translated(error) from None


def find_agent(config: Config | None) -> RemoteAgent | None:
    """The running agent; None if none runs. With None for the configuration, any agent counts.

    Raises `BusError` without a bus. Raises `AgentError` if the agent does not answer, or uses another
    configuration: it would act on other content than the file has now.
    """
    bus = Bus("agent-signals")
    try:
        arguments = ("(s)", (NAME,))
        owner = bus.call(*BUS, f"{BUS[0]}.GetNameOwner", arguments, _ANSWER_SECONDS).unpack()[0]
        _require_same(bus, owner, config)
    except Error as error:
        bus.close()
        name, text = remote_error(error)
        if name == _NO_OWNER:
            return None
        if name == _DENIED:
            raise AgentError("this user may not call the agent", hint="run the verb as root") from None
        if name == _TOO_MANY:
            raise _busy(text) from None
        raise AgentError(f"the agent does not answer: {text}", hint=_LOOK_AT_UNIT) from None
    except AgentError:
        bus.close()
        raise
    return RemoteAgent(bus, owner)


def _require_same(bus: Bus, owner: str, config: Config | None) -> None:
    """Raises `AgentError` if the agent uses another configuration, and the bus's own error."""

    def read(name: str) -> str:
        asked = ("(ss)", (AGENT_INTERFACE, name))
        return str(bus.call(owner, PATH, f"{PROPERTIES_INTERFACE}.Get", asked, _ANSWER_SECONDS).unpack()[0])

    known = read("ConfigurationId")
    if config is None or known == config.id:
        return
    file = read("Configuration")
    if file == str(config.file):
        raise AgentError(
            f"{file}: has changed since the agent read it, so the agent was not asked",
            hint="make the agent read it: systemctl reload credferry.service",
        )
    raise AgentError(
        f"{config.file}: the agent uses another configuration, {file}",
        hint=f"use the same file: --config {file}",
    )


def _is_under_way(vm: dict[str, Any]) -> bool:
    state = State(vm["State"])
    return state in {State.RESTART_DUE, State.PUSH_DUE, State.SEAL_DUE} or (
        state is State.CHANGING and vm["LastResult"] in {UNDER_WAY, PUSH_UNDER_WAY}
    )


def _busy(text: str) -> AgentError:
    return AgentError(f"the agent refuses this call: {text}", hint="run the verb again")


def _translated(error: Any) -> CredferryError:  # noqa: ANN401 (GLib.Error has no stubs)
    name, text = remote_error(error)
    if name == _DENIED:
        return AgentError(
            "this user may not ask the agent for that: only root may", hint="run the verb as root"
        )
    if name == _TOO_MANY:
        return _busy(text)
    if name in _NO_OBJECT:
        return NoObjectError(text, hint="see: busctl tree org.credferry.Agent1")
    if not name.startswith(ERROR_PREFIX):
        return BusError(f"the agent does not answer: {text}", hint=_LOOK_AT_UNIT)
    kind = name.removeprefix(ERROR_PREFIX)
    # The agent's text ends with its hint, as an error on the bus has only one text.
    hint = "see: credferry status" if kind == INTERNAL else ""
    if kind in ERRORS:
        return ERRORS[kind](text, hint=hint)
    return OrderError(kind, text, hint=hint)
