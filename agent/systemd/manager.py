# SPDX-License-Identifier: MIT
"""systemd over D-Bus.

The signal JobRemoved can arrive before the method that made the job returns. So this module keeps the last
results until a caller asks for them.

One job: `SystemBus`, the one connection through which the agent and verbs ask systemd.
"""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from credferry.agent.bus.connection import CALL_SECONDS, Bus, Error, reason
from credferry.agent.bus.names import PROPERTIES_INTERFACE, unit_path
from credferry.agent.errors import BusError
from credferry.agent.systemd.ended_jobs import last_result
from credferry.agent.systemd.known_units import KnownUnit, ListedUnit
from credferry.agent.systemd.units import UnitState, restart_unit
from credferry.launcher.handoff import EVIDENCE_PARENT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

_SYSTEMD = "org.freedesktop.systemd1"
_MANAGER_PATH = "/org/freedesktop/systemd1"
_MANAGER = f"{_SYSTEMD}.Manager"
_UNIT = f"{_SYSTEMD}.Unit"
_SERVICE = f"{_SYSTEMD}.Service"
_UNIT_PROPERTIES = (
    *("LoadState", "ActiveState", "SubState", "InvocationID", "Job"),
    *("ActiveEnterTimestampMonotonic", "StateChangeTimestamp", "NeedDaemonReload"),
)
_SERVICE_PROPERTIES = (
    *("Result", "NRestarts", "TimeoutStartUSec", "TimeoutStopUSec", "ExecStartPre"),
    "LoadCredentialEncrypted",
    "ExecMainStatus",
)
_NOT_LOADED = "org.freedesktop.systemd1.NoSuchUnit"
_EVIDENCE = f"/{EVIDENCE_PARENT}/"
_ASK_SECONDS = 5.0
"""Seconds between two checks whether systemd still has a job."""
_RESULTS_KEPT = 1024
_MARGIN_SECONDS = 10.0
_FOREVER = 2**64 - 1
_UNBOUNDED_START_SECONDS = 3600.0
"""Stands for an infinite timeout of a unit, in seconds."""


class SystemBus:
    """`SystemManager` over the system bus.

    Calls ``on_job`` in another thread: with a unit's name when a job of that unit has ended, and with ""
    when the connection is lost. It must return at once and must not raise.
    """

    def __init__(self, on_job: Callable[[str], None] = lambda _: None) -> None:
        self._on_job = on_job
        self._known: dict[str, KnownUnit] = {}
        self._listed: tuple[bytes, Mapping[str, ListedUnit]] = (b"", {})
        self._results: OrderedDict[str, str] = OrderedDict()
        self._ended = threading.Condition()
        self._alive = True
        self._bus = Bus("systemd-signals", self._on_closed)
        try:
            self._bus.subscribe(_SYSTEMD, _MANAGER_PATH, f"{_MANAGER}.JobRemoved", self._on_job_removed)
            self._manager = self._bus.pydbus.get(_SYSTEMD, _MANAGER_PATH, timeout=CALL_SECONDS)
            self._manager.Subscribe(timeout=CALL_SECONDS)
        except Error as error:
            self.close()
            raise _refused("systemd", error) from None
        except BusError:
            self.close()
            raise

    def unit(self, name: str) -> UnitState:
        """See `SystemManager`."""
        unit, service = self._ask_in_full(name)
        now = time.clock_gettime(time.CLOCK_MONOTONIC)
        active = unit["ActiveState"] == "active"
        found = UnitState(
            name=name,
            load=unit["LoadState"],
            active=unit["ActiveState"],
            sub=unit["SubState"],
            invocation_id=bytes(unit["InvocationID"]).hex(),
            result=service.get("Result", "success"),
            has_job=unit["Job"][0] != 0,
            active_seconds=max(0.0, now - unit["ActiveEnterTimestampMonotonic"] / 1e6) if active else 0.0,
            changed_at=unit["StateChangeTimestamp"] / 1e6,
            restarts=service.get("NRestarts", 0),
            exit_status=service.get("ExecMainStatus", 0),
            restart_seconds=_seconds(service.get("TimeoutStopUSec", 0))
            + _seconds(service.get("TimeoutStartUSec", 0)),
            keeps_evidence=any(
                _EVIDENCE in argument
                for command in service.get("ExecStartPre", ())
                for argument in command[1]
            ),
            needs_reload=unit["NeedDaemonReload"],
            credentials=tuple(map(tuple, service["LoadCredentialEncrypted"]))
            if "LoadCredentialEncrypted" in service
            else None,
        )
        if name in self._known:
            self._known[name] = KnownUnit(found, now)
        return found

    def _ask_in_full(self, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """A unit's properties, and those of the service, if systemd has loaded it. Raises `BusError`."""
        path = unit_path(name)
        try:
            unit = self._properties(path, _UNIT, _UNIT_PROPERTIES)
            is_loaded = unit["LoadState"] == "loaded"
            return unit, self._properties(path, _SERVICE, _SERVICE_PROPERTIES) if is_loaded else {}
        except Error as error:
            raise _refused(name, error) from None

    def units(self, invocations: Mapping[str, str]) -> dict[str, UnitState]:
        """See `SystemManager`. Makes one call for all units, and up to two for each that has changed."""
        listed = self._list(list(invocations))
        found = {}
        for name, invocation in invocations.items():
            known = self._known.get(name)
            if known is None or not known.is_vouched_for(listed.get(name), invocation):
                known = self._known[name] = KnownUnit(
                    self.unit(name), time.clock_gettime(time.CLOCK_MONOTONIC)
                )
            found[name] = known.now()
        return found

    def _list(self, names: list[str]) -> Mapping[str, ListedUnit]:
        try:
            reply = self._bus.call(
                _SYSTEMD, _MANAGER_PATH, f"{_MANAGER}.ListUnitsByNames", ("(as)", (names,))
            )
        except Error as error:
            raise _refused("systemd", error) from None
        # Most often nothing has changed since the last call. For a thousand units, unpacking the reply takes
        # three times as long as the call itself.
        packed = bytes(reply.get_data_as_bytes().get_data())
        last = self._listed  # read once: threads that restart a VM call this too
        if packed != last[0]:
            rows = reply.unpack()[0]
            last = packed, {row[0]: ListedUnit(row[2], row[3], row[4], has_job=row[7] != 0) for row in rows}
            if len(names) > 1:  # a single unit's reply must not replace that of all
                self._listed = last
        return last[1]

    def try_restart(self, name: str) -> str:
        """See `SystemManager`."""
        return self._job(name, self._manager.TryRestartUnit)

    def restart_failed(self, name: str) -> str:
        """See `SystemManager`. Without root, the agent starts `restart_unit`, which restarts it as root."""
        if os.geteuid() != 0:
            if self.unit(name).active != "failed":
                return self._job(name, self._manager.TryRestartUnit)
            with suppress(BusError):  # an older polkit rule lets the agent itself restart
                return self._job(name, self._manager.StartUnit, restart_unit(name))
        return self.restart(name)

    def restart(self, name: str) -> str:
        """Restart a unit, or start it if it is down. Waits, and returns the result of the job."""
        try:
            # If the unit has hit its start limit, systemd refuses a start, even if the cause is gone.
            self._manager.ResetFailedUnit(name, timeout=CALL_SECONDS)
        except Error as error:
            # systemd unloads a unit that is down and has not failed. Its start limit is then gone too.
            if _NOT_LOADED not in reason(error):
                raise _refused(name, error) from None
        return self._job(name, self._manager.RestartUnit)

    def ended(self, name: str) -> str:
        """See `SystemManager`."""
        return last_result(name)

    def start(self, name: str) -> str:
        """See `SystemManager`."""
        return self._job(name, self._manager.StartUnit)

    def _job(self, name: str, method: Callable[..., str], asked: str = "") -> str:
        """Start a job of the unit, or of ``asked``, which acts on it. Waits; returns the result."""
        asked = asked or name
        began, deadline = time.monotonic(), None
        try:
            job = method(asked, "replace", timeout=CALL_SECONDS)
        except Error as error:
            raise _refused(name, error) from None
        is_gone = False
        while True:
            with self._ended:
                left = _ASK_SECONDS if deadline is None else max(0.0, deadline - time.monotonic())
                self._ended.wait_for(
                    lambda: job in self._results or not self._alive, min(_ASK_SECONDS, left)
                )
                if job in self._results:
                    return self._results.pop(job)
                if not self._alive:
                    raise BusError(
                        f"{name}: lost the connection to the bus during its restart",
                        hint="the agent's next check finds the result",
                    )
            if is_gone:  # and there is still no result, so its signal was lost
                return "failed" if self.unit(name).active == "failed" else "done"
            if deadline is None:  # asked late: most jobs end before the limit matters
                deadline = began + self.unit(name).restart_seconds + _MARGIN_SECONDS
            if time.monotonic() >= deadline:
                return "no result in time"
            is_gone = not self._is_queued(asked, job)

    def _is_queued(self, name: str, job: str) -> bool:
        """Whether systemd still has a job. While systemd re-executes, its signals are lost."""
        try:
            path = self._manager.LoadUnit(name, timeout=CALL_SECONDS)
            queued: str = self._properties(path, _UNIT, ("Job",))["Job"][1]
        except Error as error:
            raise _refused(name, error) from None
        return queued == job

    def close(self) -> None:
        """See `SystemManager`."""
        with self._ended:  # once its loop has ended, the connection calls `_on_closed` no more
            self._alive = False
            self._ended.notify_all()
        self._bus.close()

    def _properties(self, path: str, interface: str, names: Iterable[str]) -> dict[str, Any]:
        # Not by pydbus's proxies: for each unit they would first make an introspection call and a class.
        reply = self._bus.call(_SYSTEMD, path, f"{PROPERTIES_INTERFACE}.GetAll", ("(s)", (interface,)))
        # Unpack only these. A service has some 300: with dozens of VMs, unpacking all took 90 % of a cycle.
        table = reply.get_child_value(0)
        found = {name: table.lookup_value(name, None) for name in names}
        return {name: value.unpack() for name, value in found.items() if value is not None}

    def _on_job_removed(self, arguments: tuple[Any, ...]) -> None:
        _number, job, unit, result = arguments
        with self._ended:
            self._results[job] = result
            while len(self._results) > _RESULTS_KEPT:
                self._results.popitem(last=False)
            self._ended.notify_all()
        self._on_job(unit)

    def _on_closed(self) -> None:
        with self._ended:
            self._alive = False
            self._ended.notify_all()
        self._on_job("")


def _seconds(microseconds: int) -> float:
    return _UNBOUNDED_START_SECONDS if microseconds == _FOREVER else microseconds / 1e6


def _refused(what: str, error: Any) -> BusError:  # noqa: ANN401 (GLib.Error has no stubs)
    return BusError(f"{what}: {reason(error)}", hint="see systemctl status and journalctl -b")
