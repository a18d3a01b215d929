# SPDX-License-Identifier: MIT
"""Objects that a connection publishes: who calls them, and how their methods are answered."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from gi.repository import Gio, GLib
from pydbus.generic import signal as signal  # noqa: PLC0414 (for published objects)
from pydbus.registration import ObjectRegistration, ObjectWrapper

from credferry.agent.bus.connection import CALL_SECONDS
from credferry.agent.bus.names import BUS, ERROR_PREFIX, PROPERTIES_INTERFACE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from credferry.agent.bus.connection import Bus

_CALLERS_MAX = 512
_ERROR = "org.freedesktop.DBus.Error"


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller of a published object's method, as the bus identifies it."""

    uid: int


Serve = Callable[[Caller, Callable[[], Callable[[], None]]], bool]
"""Accepts a call, or returns False. What it is given makes the answer, and returns what sends it."""


class Target(Protocol):
    """An object to publish. It also has the methods and signals that its introspection data names."""

    dbus: str
    """Introspection data, in XML. pydbus requires this name."""

    def all_properties(self) -> Mapping[str, Any]:
        """All properties that the introspection data names, as they are at one moment."""


class ObjectServer:
    """Publishes objects on one connection. Each call, also a read of properties, goes to ``serve``."""

    def __init__(self, bus: Bus, serve: Serve) -> None:
        self.serve = serve
        self._bus = bus
        self._callers: OrderedDict[str, Caller] = OrderedDict()

    def publish(self, path: str, target: Target) -> Any:  # noqa: ANN401 (pydbus has no types)
        """Publish an object. The result has ``unregister``.

        Each call goes to `Serve`, which returns whether it accepts the call: calls of methods, and reads of
        properties, whose number and size grow with the number of VMs. A method gets the `Caller` before its
        other arguments.
        """

        def register() -> object:
            interfaces = Gio.DBusNodeInfo.new_for_xml(target.dbus).interfaces
            wrapper = _Published(self, target, interfaces)
            return ObjectRegistration(self._bus.pydbus, path, interfaces, wrapper, own_wrapper=True)

        return self._bus.invoke(register)

    def find_caller(self, name: str, found: Callable[[Caller | None], None]) -> None:
        """Find the caller that has a unique name. Calls ``found`` with the caller; None where it is unknown.

        Call this in the connection's thread. It does not wait; the same thread calls ``found`` later.
        """
        known = self._callers.get(name)
        if known is not None:
            found(known)
            return

        def answered(connection: Any, result: object) -> None:  # noqa: ANN401 (GDBus has no stubs)
            try:
                caller = Caller(connection.call_finish(result).unpack()[0])
            except GLib.Error:
                found(None)
                return
            self._callers[name] = caller  # the bus never reuses a unique name
            while len(self._callers) > _CALLERS_MAX:
                self._callers.popitem(last=False)
            found(caller)

        self._bus.connection.call(
            *BUS,
            BUS[0],
            "GetConnectionUnixUser",
            GLib.Variant("(s)", (name,)),
            GLib.VariantType("(u)"),
            Gio.DBusCallFlags.NO_AUTO_START,
            int(CALL_SECONDS * 1000),
            None,
            answered,
        )


class ServedError(Exception):
    """Raised by a method of a published object. The caller gets a D-Bus error of this name."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(text)
        self.name = name


class _Published(ObjectWrapper):  # type: ignore[misc]  # pydbus has no types
    """pydbus's wrapper with this project's error names, and no logged traceback. `Serve` runs all calls."""

    def __init__(self, server: ObjectServer, target: Target, interfaces: list[Any]) -> None:
        super().__init__(target, interfaces)
        self._server = server

    def GetAll(self, interface: str) -> dict[str, Any]:  # noqa: N802 (its name on the bus)
        """All properties of an interface, of one moment: pydbus's own reads one after the other."""
        values = self.object.all_properties()
        prefix = f"{interface}."
        return {
            name.removeprefix(prefix): GLib.Variant(signature, values[name.removeprefix(prefix)])
            for name, signature in self.readable_properties.items()
            if name.startswith(prefix)
        }

    def call_method(
        self,
        _connection: object,
        sender: str,
        _path: str,
        interface: str,
        method: str,
        parameters: tuple[Any, ...],
        invocation: Any,  # noqa: ANN401 (Gio.DBusMethodInvocation has no stubs)
    ) -> None:
        """Answer one call. GDBus has checked it against the introspection data."""
        if interface == PROPERTIES_INTERFACE:
            outputs = {"Get": ["v"], "GetAll": ["a{sv}"]}[method]
            read = {"Get": self.Get, "GetAll": self.GetAll}[method]
        else:
            outputs = self.outargs[f"{interface}.{method}"]
            read = None

        def serve(caller: Caller | None) -> None:
            def call() -> tuple[Any, ...]:
                result = read(*parameters) if read else getattr(self.object, method)(caller, *parameters)
                return () if not outputs else (result,) if len(outputs) == 1 else result

            def answer() -> Callable[[], None]:
                return self._answer(invocation, call, f"({''.join(outputs)})")

            if caller is None:
                invocation.return_dbus_error(f"{_ERROR}.AccessDenied", "the bus does not name the caller")
            elif not self._server.serve(caller, answer):
                invocation.return_dbus_error(
                    f"{_ERROR}.LimitsExceeded",
                    "too many calls at once: wait for the answers to earlier calls",
                )

        self._server.find_caller(sender, serve)

    @staticmethod
    def _answer(
        invocation: Any,  # noqa: ANN401 (see above)
        call: Callable[[], tuple[Any, ...]],
        signature: str,
    ) -> Callable[[], None]:
        """What sends the answer to a call."""
        try:
            return partial(invocation.return_value, GLib.Variant(signature, call()))
        except ServedError as error:
            return partial(invocation.return_dbus_error, error.name, str(error))
        except Exception as error:  # noqa: BLE001 (answers its type only: its text may quote a secret)
            return partial(invocation.return_dbus_error, f"{ERROR_PREFIX}Internal", type(error).__name__)
