# SPDX-License-Identifier: MIT
"""Systemd's properties of units, over one connection to the bus for all units.

systemctl of version 252 shows LoadCredentialEncrypted= as [unprintable]; busctl would start for each unit.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import Any, Final

from credferry.agent.bus.connection import Bus, Error, reason, remote_error
from credferry.agent.bus.names import PROPERTIES_INTERFACE, unit_path
from credferry.agent.doctor.finding import UnseenError
from credferry.agent.errors import BusError

_SYSTEMD: Final = "org.freedesktop.systemd1"
_SECONDS: Final = 15.0


class Properties(Mapping[str, Any]):
    """All properties of a unit, with arrays and structs as lists. Unpacks a property when it is asked for.

    A service has some 300 of them, and the doctor asks for thirty.
    """

    def __init__(self, packed: Any) -> None:  # noqa: ANN401 (a GLib.Variant of a{sv}, which has no types)
        self._packed = packed

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401 (as D-Bus types it)
        value = self._packed.lookup_value(name, None)
        if value is None:
            raise KeyError(name)
        return _plain(value.unpack())

    def __iter__(self) -> Iterator[str]:
        return iter(self._packed.keys())

    def __len__(self) -> int:
        return int(self._packed.n_children())


class UnitReader:
    """Asks systemd about units. After a bus that does not answer, it asks no more. For several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bus: Bus | None = None
        self._failure = ""

    def properties(self, name: str) -> Properties:
        """The properties of a unit, which need not exist. Raises `UnseenError`."""
        path = unit_path(name)
        bus = self._connected(name)
        try:
            reply = bus.call(
                _SYSTEMD, path, f"{PROPERTIES_INTERFACE}.GetAll", ("(s)", ("",)), seconds=_SECONDS
            )
        except Error as error:
            if not remote_error(error)[0]:
                self._failure = reason(error)  # the bus itself, and not systemd's answer about this unit
            raise UnseenError(f"{name}: {reason(error)}") from None
        return Properties(reply.get_child_value(0))

    def _connected(self, name: str) -> Bus:
        with self._lock:
            if self._bus is None and not self._failure:
                try:
                    self._bus = Bus("doctor")
                except BusError as error:
                    self._failure = str(error)
            if self._bus is None or self._failure:
                raise UnseenError(f"{name}: {self._failure}")
            return self._bus


def _plain(value: Any) -> Any:  # noqa: ANN401 (as D-Bus types it)
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value
