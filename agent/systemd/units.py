# SPDX-License-Identifier: MIT
"""What is known of a VM's unit, and what is asked of systemd; how it is asked is `manager`'s."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping


DONE, CANCELED, DEPENDENCY = "done", "canceled", "dependency"
"""systemd's words for the ends of jobs: the second says that another job took its place, the third that the
unit was stopped and could not be started, since a unit that it requires failed."""
_NO_STOPS = frozenset({DEPENDENCY, "skipped"})
"""How no stop ends that somebody has asked for: a start that did not come to be has left the unit down."""
_RESTART_UNIT = "credferry-restart@{unit}.service"
HEALTH_UNIT = "credferry-health@{vm}.service"
"""What checks a VM's health, where it has a check; made by its name."""
FLAPS = 2
"""So often started anew by systemd, a unit counts as one that fails over and over."""


def restart_unit(unit: str) -> str:
    """The unit that starts another again which has failed; escaped as by systemd-escape(1)."""
    escaped = re.sub(
        rb"[^A-Za-z0-9:_.]|\A\.",
        lambda found: b"-" if found[0] == b"/" else b"\\x%02x" % found[0][0],
        unit.encode(),
    )
    return _RESTART_UNIT.format(unit=escaped.decode())


@dataclass(frozen=True, slots=True)
class UnitState:
    """What systemd says of a unit at one moment.

    ``active_seconds`` is how long it has been active, on the monotonic clock; 0.0 when it is not.
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
    """When it came to be in its state, in seconds since 1970."""
    restarts: int = 0
    """How often systemd has started it anew by itself (``Restart=``) since somebody had it started."""
    restart_seconds: float = 0.0
    """How long a restart may take by the unit's own timeouts."""
    keeps_evidence: bool = True
    """Whether root keeps evidence of each of its starts, by the unit as systemd has loaded it."""
    needs_reload: bool = False
    """Whether its files have changed since systemd has read them."""
    credentials: tuple[tuple[str, str], ...] | None = None
    """``LoadCredentialEncrypted=`` as systemd has loaded it: names and paths; None where nobody asked."""

    is_left_down: bool = False
    """Whether it is down since a restart that could not start it, as a unit that it requires failed. It then
    looks as if somebody had stopped it: only who asks for it (`as_left`) learns the difference."""

    @property
    def is_loaded(self) -> bool:
        """Whether systemd knows the unit, and it is not masked."""
        return self.load == "loaded"

    @property
    def is_active(self) -> bool:
        """Whether it is up and staying so."""
        return self.active == "active"

    @property
    def is_stopped(self) -> bool:
        """Whether it was ended by somebody's wish, and not by a failure."""
        return self.active == "inactive" and self.result == "success" and not self.is_left_down

    @property
    def is_flapping(self) -> bool:
        """Whether it is started over and over: active now and then, and never for long."""
        return self.restarts >= FLAPS

    @property
    def is_changing(self) -> bool:
        """Whether it is on its way up or down."""
        return self.has_job or self.active in {"activating", "deactivating", "reloading", "refreshing"}


class SystemManager(Protocol):
    """What is asked of systemd. Every method raises `BusError` when systemd cannot be reached or refuses."""

    def unit(self, name: str) -> UnitState:
        """The unit's state; one that does not exist has ``load`` of ``not-found``."""

    def units(self, invocations: Mapping[str, str]) -> dict[str, UnitState]:
        """The states of several units, each with the invocation that something beside systemd tells of.

        That, and systemd saying the same in short as last time, vouch for what was asked at length then.
        An empty one vouches for nothing.
        """

    def try_restart(self, name: str) -> str:
        """Restart a unit if it runs, wait for the job's end, and return systemd's word for its result.

        Anything but ``done`` is a failure; ``done`` says no more than that the job ended.
        """

    def restart_failed(self, name: str) -> str:
        """Start again a unit that a restart of ours left down: the same, without minding that it is down."""

    def start(self, name: str) -> str:
        """Start a unit, wait for the job's end, and return systemd's word for its result."""

    def ended(self, name: str) -> str:
        """How the unit's last job since the host's boot ended, in systemd's word; empty if nothing tells."""

    def close(self) -> None:
        """Let the connection go."""


def as_left(unit: UnitState, manager: SystemManager) -> UnitState:
    """The same unit, where a restart was noted for it: whether that has left it down. Raises `BusError`.

    The agent that asked for the restart may have ended before it saw how that ended.
    """
    if not unit.is_stopped or unit.has_job:
        return unit
    return replace(unit, is_left_down=True) if manager.ended(unit.name) in _NO_STOPS else unit
