# SPDX-License-Identifier: MIT
"""One connection to the system bus; the only module that knows pydbus and GLib.

By default, pydbus waits without a limit, and its shared connection ends the process when the bus closes it
(GDBus's exit-on-close). So each owner has its own connection, with its own thread and GLib loop. Everything
has a deadline: a dbus-daemon that is stopped does not answer, and messages to it fill the socket.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from gi.repository import Gio, GLib
from pydbus.generic import signal as signal  # noqa: PLC0414 (for published objects)
from pydbus.registration import ObjectRegistration, ObjectWrapper

from credferry.agent.bus.names import BUS, ERROR_PREFIX, PROPERTIES_INTERFACE
from credferry.agent.errors import BusError

if TYPE_CHECKING:
    from collections.abc import Mapping

Error = GLib.Error
Variant = GLib.Variant

CALL_SECONDS = 20.0
CONNECT_SECONDS = 5.0
_QUIT_SECONDS = 5.0
_SYSTEM_BUS = "unix:path=/run/dbus/system_bus_socket"
_DO_NOT_QUEUE = 4
_OWNER, _ALREADY_OWNER = 1, 4
_CALLERS_MAX = 512
_ERROR = "org.freedesktop.DBus.Error"

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller of a published object's method, as the bus identifies it."""

    uid: int


Serve = Callable[[Caller, Callable[[], None]], bool]


class Bus:
    """A connection to the system bus. Its own thread, ``name``, handles everything that arrives.

    That thread calls ``on_closed`` once when the connection is lost, not after `close`. Raises `BusError`.
    """

    def __init__(self, name: str, on_closed: Callable[[], None] = lambda: None) -> None:
        self._on_closed = on_closed
        self._is_given_up = False
        self._failure: Exception | None = None
        self._callers: OrderedDict[str, Caller] = OrderedDict()
        self._ready = threading.Event()
        self._cancellable = Gio.Cancellable()
        self._context = GLib.MainContext.new()
        self._loop = GLib.MainLoop(self._context)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()
        if not self._ready.wait(CONNECT_SECONDS):
            self._is_given_up = True
            self._cancellable.cancel()  # ends the handshake; later steps have GDBus's limit of 25 s
            raise _no_connection(f"it does not answer within {CONNECT_SECONDS:.0f} s")
        if self._failure is not None:
            raise _no_connection(reason(self._failure)) from None

    def _run(self) -> None:
        # Objects made while this is the thread's default context send their events to it, "closed" too.
        self._context.push_thread_default()
        try:
            self.connection = Gio.DBusConnection.new_for_address_sync(
                os.environ.get("DBUS_SYSTEM_BUS_ADDRESS", _SYSTEM_BUS),
                Gio.DBusConnectionFlags.AUTHENTICATION_CLIENT
                | Gio.DBusConnectionFlags.MESSAGE_BUS_CONNECTION,
                None,
                self._cancellable,
            )
            self.connection.set_exit_on_close(False)
            self.connection.connect("closed", self._closed)
        except GLib.Error as error:
            self._failure = error
            self._ready.set()
        else:
            self._ready.set()
            if self._is_given_up:
                self.connection.close(None, None)
            else:
                self._loop.run()
        finally:
            self._context.pop_thread_default()

    def _closed(self, *_: Any) -> None:  # noqa: ANN401 (GDBus's arguments, none of use)
        if not self._is_given_up:
            self._on_closed()

    @property
    def pydbus(self) -> Any:  # noqa: ANN401 (pydbus has no types)
        """The pydbus object for the connection. Each call by it needs a ``timeout``."""
        return self.connection.pydbus

    def invoke(self, work: Callable[[], _T]) -> _T:
        """Run ``work`` in the connection's thread. Returns or raises what it does. Raises `BusError`."""
        if threading.current_thread() is self._thread:
            return work()
        done = threading.Event()
        results: list[_T] = []
        failures: list[Exception] = []

        def run(*_: object) -> bool:
            try:
                results.append(work())
            except Exception as error:  # noqa: BLE001 (raised in the waiting thread)
                failures.append(error)
            done.set()
            return False

        self._attach(run)
        if not done.wait(CALL_SECONDS):
            raise BusError("the connection to the bus is busy", hint="it is tried again")
        if failures:
            raise failures[0]
        return results[0]

    def _attach(self, run: Callable[..., bool]) -> None:
        source = GLib.idle_source_new()
        source.set_callback(run)
        source.attach(self._context)

    def call(
        self,
        service: str,
        path: str,
        method: str,
        arguments: tuple[str, tuple[Any, ...]] = ("()", ()),
        seconds: float = CALL_SECONDS,
    ) -> Any:  # noqa: ANN401 (a GLib.Variant, which has no types)
        """Call ``interface.method`` of an object. Returns the packed reply. Raises `Error`."""
        interface, _, name = method.rpartition(".")
        return self.connection.call_sync(
            service,
            path,
            interface,
            name,
            GLib.Variant(*arguments),
            None,
            Gio.DBusCallFlags.NO_AUTO_START,
            int(seconds * 1000),
            None,
        )

    def subscribe(
        self, service: str, path: str, signal_name: str, handle: Callable[[tuple[Any, ...]], None]
    ) -> None:
        """Call ``handle`` in the connection's thread with the arguments of each ``interface.signal``."""
        interface, _, member = signal_name.rpartition(".")
        self.invoke(
            lambda: self.connection.signal_subscribe(
                service,
                interface,
                member,
                path,
                None,
                Gio.DBusSignalFlags.NONE,
                lambda *received: handle(received[5].unpack()),
            )
        )

    def own(self, name: str) -> bool:
        """Own a name until the connection ends. Returns False where another connection owns it.

        Raises `Error` where the bus's policy refuses.
        """
        reply = self.call(*BUS, f"{BUS[0]}.RequestName", ("(su)", (name, _DO_NOT_QUEUE)))
        return reply.unpack()[0] in {_OWNER, _ALREADY_OWNER}

    def publish(self, path: str, target: object, serve: Serve) -> Any:  # noqa: ANN401 (pydbus has no types)
        """Publish an object; ``dbus`` is its introspection data. The result has ``unregister``.

        The connection's thread reads its properties. Each method call goes to ``serve``, which returns
        whether it accepts the call. A method gets the `Caller` before its other arguments.
        """

        def register() -> object:
            xml = target.dbus  # type: ignore[attr-defined]  # pydbus requires this name
            interfaces = Gio.DBusNodeInfo.new_for_xml(xml).interfaces
            wrapper = _Published(self, target, interfaces, serve)
            return ObjectRegistration(self.pydbus, path, interfaces, wrapper, own_wrapper=True)

        return self.invoke(register)

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

        self.connection.call(
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

    def close(self) -> None:
        """Close the connection without waiting for a bus that does not answer. May be called again."""
        self._is_given_up = True
        self._attach(lambda *_: bool(self._loop.quit()))  # a quit before the loop runs has no effect
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=_QUIT_SECONDS)
        if not self.connection.is_closed():
            # Without waiting: the bus may never read what was sent.
            self.connection.close(None, None)


class ServedError(Exception):
    """Raised by a method of a published object. The caller gets a D-Bus error of this name."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(text)
        self.name = name


class _Published(ObjectWrapper):  # type: ignore[misc]  # pydbus has no types
    """pydbus's wrapper with this project's error names, and no logged traceback. `Serve` runs methods."""

    def __init__(self, bus: Bus, target: object, interfaces: list[Any], serve: Serve) -> None:
        super().__init__(target, interfaces)
        self._bus = bus
        self._serve = serve

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
            function = {"Get": self.Get, "GetAll": self.GetAll}[method]
            signature = {"Get": "(v)", "GetAll": "(a{sv})"}[method]
            self._answer(invocation, lambda: (function(*parameters),), signature)
            return
        outputs = self.outargs[f"{interface}.{method}"]
        target = getattr(self.object, method)

        def serve(caller: Caller | None) -> None:
            def call() -> tuple[Any, ...]:
                result = target(caller, *parameters)
                return () if not outputs else (result,) if len(outputs) == 1 else result

            if caller is None:
                invocation.return_dbus_error(f"{_ERROR}.AccessDenied", "the bus does not say who calls")
            elif not self._serve(caller, lambda: self._answer(invocation, call, f"({''.join(outputs)})")):
                invocation.return_dbus_error(
                    f"{_ERROR}.LimitsExceeded", "too many calls at once: wait for their answers"
                )

        self._bus.find_caller(sender, serve)

    @staticmethod
    def _answer(invocation: Any, call: Callable[[], tuple[Any, ...]], signature: str) -> None:  # noqa: ANN401 (see above)
        try:
            invocation.return_value(GLib.Variant(signature, call()))
        except ServedError as error:
            invocation.return_dbus_error(error.name, str(error))
        except Exception as error:  # noqa: BLE001 (answers its type only: its text may quote a secret)
            invocation.return_dbus_error(f"{ERROR_PREFIX}Internal", type(error).__name__)


def variants(types: Mapping[str, str], values: Mapping[str, Any]) -> dict[str, Any]:
    """Values packed for D-Bus, by the signatures in ``types``."""
    return {key: GLib.Variant(types[key], value) for key, value in values.items()}


def reason(error: Any) -> str:  # noqa: ANN401 (GLib.Error has no stubs)
    """The text of an `Error`, without GDBus's prefix."""
    return str(error.message).removeprefix("GDBus.Error:").strip()


def remote_error(error: Any) -> tuple[str, str]:  # noqa: ANN401 (GLib.Error has no stubs)
    """The D-Bus name of an `Error` and its text. The name is empty for a local error."""
    name = Gio.DBusError.get_remote_error(error) or ""
    return name, reason(error).removeprefix(f"{name}:").strip()


def _no_connection(why: str) -> BusError:
    return BusError(
        f"no connection to the system bus: {why}",
        hint="is dbus.service running, and /run/dbus reachable from here?",
    )
