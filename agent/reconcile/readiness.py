# SPDX-License-Identifier: MIT
"""Whether a start of a VM can work, asked before a restart takes the VM down; pure.

A running VM with an old secret is better than a VM that is down. PID 1 opens a VM's credentials with the
host's key, by the names in the unit as it is loaded. Where that would fail, the agent leaves the VM running
and says what to mend. A VM that is down already is tried all the same: a try costs nothing there.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from credferry.agent.errors import KeyFileError
from credferry.agent.reconcile.decision import Decision, Observed, State
from credferry.agent.reconcile.desired import Desired
from credferry.launcher.handoff import CREDENTIAL_PREFIX

if TYPE_CHECKING:
    from collections.abc import Callable

    from credferry.agent.config.model import VmConfig
    from credferry.agent.sealing.keys import CredentialKey
    from credferry.agent.systemd.units import UnitState

_LOOK_SECONDS = 5.0
"""After how long an obstacle is looked at again: nothing tells when somebody has removed it."""


class Ground(Protocol):
    """What a start stands on. Everything is read afresh: the agent's own copies are not what PID 1 uses."""

    def key(self) -> CredentialKey:
        """The host's key, under systemd's conditions. Raises `KeyFileError`."""

    def is_known(self, key: CredentialKey) -> bool:
        """Whether that is the key that the agent seals with."""

    def unopened(self, vm: str, key: CredentialKey) -> str:
        """Why the current generation cannot be opened whole with a key; empty where it can be."""

    def place(self, vm: str) -> str:
        """The path of the current generation, as a unit has to name it."""

    def lacks_room(self) -> str:
        """Why systemd could not make what a start needs in the runtime directory; empty where it could."""


@dataclass(frozen=True, slots=True)
class Ready:
    """Nothing is known that would keep the VM from starting."""


@dataclass(frozen=True, slots=True)
class Obstructed:
    """A start would fail until somebody has mended this."""

    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Spoiled:
    """What is sealed does not open. The agent itself can mend that: it seals anew."""

    reason: str


@dataclass(frozen=True, slots=True)
class Passing:
    """The host has another key, which the agent is about to take up."""


Readiness = Ready | Obstructed | Spoiled | Passing


def _is_read(unit: UnitState, _place: str) -> str:
    if not unit.needs_reload:
        return ""
    return f"files of {unit.name} have changed since systemd read them: run systemctl daemon-reload"


def _loads(unit: UnitState, place: str) -> str:
    if unit.credentials is None or any(
        name == CREDENTIAL_PREFIX and _is_same(path, place) for name, path in unit.credentials
    ):
        return ""
    return (
        f"{unit.name}, as systemd has loaded it, does not load {place}: "
        "see credferry doctor for the drop-in that it needs"
    )


def _is_same(path: str, place: str) -> bool:
    """Whether both name one directory; ``current`` itself is a link, and leads to its generation."""
    if os.path.normpath(path) == os.path.normpath(place):
        return True
    one, two = (os.path.split(os.path.normpath(each)) for each in (path, place))
    return one[1] == two[1] and os.path.realpath(one[0]) == os.path.realpath(two[0])


CONDITIONS: tuple[Callable[[UnitState, str], str], ...] = (_is_read, _loads)
"""What a unit must fulfil, each by why it does not; the path is that of the VM's current generation."""


def judge(vm: VmConfig, unit: UnitState, ground: Ground) -> Readiness:
    """Whether a start of a VM could work."""
    place = ground.place(vm.name)
    reasons = [reason for condition in CONDITIONS if (reason := condition(unit, place))]
    if reason := ground.lacks_room():
        reasons.append(reason)
    try:
        key = ground.key()
    except KeyFileError as error:
        reasons.append(f"{error}: {error.hint}")
    else:
        if not ground.is_known(key):
            return Passing()
        if not reasons and (reason := ground.unopened(vm.name, key)):
            return Spoiled(reason)
    return Obstructed(tuple(reasons)) if reasons else Ready()


def is_asked(decision: Decision, unit: UnitState | None) -> bool:
    """Whether a decision would take down a VM that is up."""
    return is_up(unit) and (decision.restart or decision.roll_back)


def is_up(unit: UnitState | None) -> bool:
    """Whether there is something to lose: a unit that fails over and over is active now and then."""
    return unit is not None and unit.is_active and not unit.is_flapping


def withheld(decision: Decision, now: Observed, readiness: Readiness) -> Decision:
    """A decision that would take a VM down, with what is known of a start."""
    left = replace(decision, restart=False, roll_back=False, unready=True)
    match readiness:
        case Ready():
            return decision
        case Passing():
            return replace(left, state=State.CHANGING, look_again=True)
        case Spoiled(reason) if decision.restart and isinstance(now.desired, Desired):
            return replace(left, state=State.SEAL_DUE, seal=now.desired, reasons=(reason,))
        case Spoiled(reason):
            reasons: tuple[str, ...] = (reason,)
        case Obstructed(reasons):
            pass
    told = tuple(f"it would not start again: {reason}" for reason in reasons)
    return replace(left, state=State.REFUSED, reasons=told, wait_seconds=_LOOK_SECONDS)
