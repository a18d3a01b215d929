# SPDX-License-Identifier: MIT
"""One connection to the system bus. Only this room knows pydbus and GLib.

By default, pydbus waits without a limit, and its shared connection ends the process when the bus closes it
(GDBus's exit-on-close). So each owner has its own connection, with its own thread and GLib loop. Everything
has a deadline: a dbus-daemon that is stopped does not answer, and messages to it fill the socket.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any, Final, TypeVar

import pydbus  # noqa: F401 (gives GDBus's connections their attribute of this name)
from gi.repository import Gio, GLib, GObject

from credferry.agent.bus.names import BUS
from credferry.agent.errors import BusError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# PyGObject makes a class at its first use. Two threads that do so at once get two classes, and one does not
# take a value of the other: "Expected GLib.VariantType, but got gi.repository.GLib.VariantType". Or one gets
# a class that is not complete: "DBusConnectionFlags has no attribute AUTHENTICATION_CLIENT". So all that is
# used, also by pydbus and by PyGObject itself, is made here, before there are threads.
_MADE: Final = (
    *(GLib.Bytes, GLib.VariantType, GLib.VariantBuilder),
    *(GLib.MainContext, GLib.MainLoop, GLib.idle_source_new, GObject.Closure),
    *(Gio.AsyncResult, Gio.Cancellable, Gio.Task),
    *(Gio.DBusAuthObserver, Gio.DBusConnection, Gio.DBusConnectionFlags),
    *(Gio.DBusCallFlags, Gio.DBusSignalFlags, Gio.DBusError, Gio.DBusMethodInvocation),
    *(Gio.DBusNodeInfo, Gio.DBusInterfaceInfo, Gio.DBusMethodInfo, Gio.DBusSignalInfo),
    *(Gio.DBusArgInfo, Gio.DBusPropertyInfo, Gio.DBusPropertyInfoFlags, Gio.dbus_is_name),
)
Error = GLib.Error
Variant = GLib.Variant

CALL_SECONDS = 20.0
CONNECT_SECONDS = 5.0
_QUIT_SECONDS = 5.0
_SYSTEM_BUS = "unix:path=/run/dbus/system_bus_socket"
_DO_NOT_QUEUE = 4
_OWNER, _ALREADY_OWNER = 1, 4

_T = TypeVar("_T")


class Bus:
    """A connection to the system bus. Its own thread, ``name``, handles everything that arrives.

    That thread calls ``on_closed`` once when the connection is lost, not after `close`. Raises `BusError`.
    """

    def __init__(self, name: str, on_closed: Callable[[], None] = lambda: None) -> None:
        self._on_closed = on_closed
        self._is_given_up = False
        self._failure: Exception | None = None
        self._ready = threading.Event()
        self._cancellable = Gio.Cancellable()
        self._context = GLib.MainContext.new()
        self._loop = GLib.MainLoop(self._context)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()
        if not self._ready.wait(CONNECT_SECONDS):
            self._is_given_up = True
            self._cancellable.cancel()  # ends the handshake; later steps have GDBus's limit of 25 s
            raise _no_connection(f"no answer within {CONNECT_SECONDS:.0f} s")
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
            raise BusError("the connection to the bus is busy", hint="the agent retries")
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

    def close(self) -> None:
        """Close the connection without waiting for a bus that does not answer. May be called again."""
        self._is_given_up = True
        self._attach(lambda *_: bool(self._loop.quit()))  # a quit before the loop runs has no effect
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=_QUIT_SECONDS)
        if not self.connection.is_closed():
            # Without waiting: the bus may never read what was sent.
            self.connection.close(None, None)


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
        hint="check that dbus.service runs and that this process can reach /run/dbus",
    )
