# SPDX-License-Identifier: MIT
"""The state of a VM's unit, and the interface to systemd. `manager` implements it over D-Bus."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping


DONE, CANCELED, DEPENDENCY = "done", "canceled", "dependency"
"""systemd's words for the results of jobs. ``canceled``: another job replaced it. ``dependency``: the unit
was stopped and could not be started, because a unit that it requires failed."""
_NO_STOPS = frozenset({DEPENDENCY, "skipped"})
"""Job results that a requested stop never has. They mean that a failed start left the unit down."""
_RESTART_UNIT = "credferry-restart@{unit}.service"
HEALTH_UNIT = "credferry-health@{vm}.service"
"""The unit that checks a VM's health, if it has a check. It gets the VM's name."""
PUSH_UNIT = "credferry-push@{vm}.service"
"""The unit that pushes a VM's current generation to its guest. It gets the VM's name."""
FLAPS = 2
"""A unit that systemd has restarted this many times counts as flapping."""


def restart_unit(unit: str) -> str:
    """The name of the unit that restarts a failed unit, escaped as by systemd-escape(1)."""
    escaped = re.sub(
        rb"[^A-Za-z0-9:_.]|\A\.",
        lambda found: b"-" if found[0] == b"/" else b"\\x%02x" % found[0][0],
        unit.encode(),
    )
    return _RESTART_UNIT.format(unit=escaped.decode())


@dataclass(frozen=True, slots=True)
class UnitState:
    """What systemd says of a unit at one moment.

    ``active_seconds`` is how long the unit has been active, on the monotonic clock; 0.0 if it is not active.
    """

    name: str
    load: str
    active: str
    sub: str
    invocation_id: str
    result: str = "success"
    has_job: bool = False
    active_seconds: float = 0.0
    changed_at: float = 0.0
    """When the unit's state last changed, in seconds since 1970."""
    restarts: int = 0
    """How often systemd has restarted the unit by itself (``Restart=``) since the last requested start."""
    restart_seconds: float = 0.0
    """How long a restart may take, by the unit's own timeouts, in seconds."""
    keeps_evidence: bool = True
    """Whether root keeps evidence of each start, according to the unit as systemd has loaded it."""
    needs_reload: bool = False
    """Whether the unit's files have changed since systemd read them."""
    credentials: tuple[tuple[str, str], ...] | None = None
    """``LoadCredentialEncrypted=`` as systemd has loaded it: names and paths; None where it was not read."""

    exit_status: int = 0
    """Exit status of the unit's last main process, if ``result`` is ``exit-code``."""

    is_left_down: bool = False
    """Whether the unit is down because a restart could not start it: a unit that it requires failed. Its
    state then looks as if an operator had stopped it. Only `as_left` sets this."""

    @property
    def is_loaded(self) -> bool:
        """Whether systemd knows the unit, and it is not masked."""
        return self.load == "loaded"

    @property
    def is_active(self) -> bool:
        """Whether the unit is active, and not on its way up or down."""
        return self.active == "active"

    @property
    def is_stopped(self) -> bool:
        """Whether the unit was stopped on request, and not by a failure."""
        return self.active == "inactive" and self.result == "success" and not self.is_left_down

    @property
    def is_flapping(self) -> bool:
        """Whether systemd restarts the unit again and again."""
        return self.restarts >= FLAPS

    @property
    def is_changing(self) -> bool:
        """Whether the unit has a job, or is on its way up or down."""
        return self.has_job or self.active in {"activating", "deactivating", "reloading", "refreshing"}


class SystemManager(Protocol):
    """The calls to systemd. Every method raises `BusError` when systemd cannot be reached or refuses."""

    def unit(self, name: str) -> UnitState:
        """The unit's state; one that does not exist has ``load`` of ``not-found``."""

    def units(self, invocations: Mapping[str, str]) -> dict[str, UnitState]:
        """The states of several units. The caller has each unit's invocation from elsewhere (evidence).

        If the invocation and systemd's short state are unchanged, the last full state still holds.
        For an empty invocation, the full state is always read again.
        """

    def try_restart(self, name: str) -> str:
        """Restart a unit if it runs, wait for the job's end, and return systemd's word for its result.

        Anything but ``done`` is a failure. ``done`` only says that the job ended.
        """

    def restart_failed(self, name: str) -> str:
        """Restart a unit as `try_restart` does, also if it is down: the agent's own restart left it so."""

    def start(self, name: str) -> str:
        """Start a unit, wait for the job's end, and return systemd's word for its result."""

    def ended(self, name: str) -> str:
        """The result of the unit's last job since the host's boot, in systemd's word; empty if unknown."""

    def close(self) -> None:
        """Close the connection."""


def as_left(unit: UnitState, manager: SystemManager) -> UnitState:
    """The same state, with ``is_left_down`` set if a noted restart left the unit down. Raises `BusError`.

    The agent that asked for the restart may have ended before it saw the result.
    """
    if not unit.is_stopped or unit.has_job:
        return unit
    return replace(unit, is_left_down=True) if manager.ended(unit.name) in _NO_STOPS else unit
