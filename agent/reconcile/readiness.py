# SPDX-License-Identifier: MIT
"""Checks whether a VM could start before a restart takes it down, or whether a push could begin; pure.

A running VM with an old secret is better than a VM that is down. PID 1 opens a VM's credentials with the
host's key, from the paths in the loaded unit. If that would fail, the agent leaves the VM running and
reports what to fix. If the VM is already down, the agent tries a start anyway, as that does no harm. But it
waits while the host's key opens nothing: such a start would fail, and would say nothing about the secrets.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from credferry.agent.errors import KeyFileError, SealError, describe
from credferry.agent.reconcile.decision import Decision, State
from credferry.agent.reconcile.desired import Desired
from credferry.agent.store.records import Way
from credferry.launcher.handoff import CREDENTIAL_PREFIX

if TYPE_CHECKING:
    from collections.abc import Callable

    from credferry.agent.config.model import VmConfig
    from credferry.agent.reconcile.observed import Observed
    from credferry.agent.sealing.keys import CredentialKey
    from credferry.agent.systemd.units import UnitState

_LOOK_SECONDS = 5.0
"""Seconds until the agent checks an obstacle again: no event reports that it is gone."""


class Ground(Protocol):
    """What a start needs from the host. All is read anew: PID 1 does not use the agent's own copies."""

    def key(self) -> CredentialKey:
        """The host's key, if its file meets systemd's conditions. Raises `KeyFileError`."""

    def is_known(self, key: CredentialKey) -> bool:
        """Whether the agent seals with this key."""

    def unopened(self, vm: str, key: CredentialKey) -> str:
        """Why the key cannot open all of the current generation; empty if it can.

        Raises `SealError` where that cannot be found out, as the host's TPM cannot be used.
        """

    def lacks_tpm(self) -> str:
        """Why the host's TPM opens nothing, as of the last examination; empty if none is needed."""

    def place(self, vm: str) -> str:
        """The path of the current generation, as the unit must name it."""

    def lacks_room(self) -> str:
        """Why the runtime directory has no room for a start; empty if it has room."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The agent knows of nothing that would prevent a start."""


@dataclass(frozen=True, slots=True)
class Obstructed:
    """A start would fail until somebody fixes this."""

    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Spoiled:
    """The sealed generation cannot be opened. The agent can fix this itself: it seals again."""

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
        f"systemd's loaded {unit.name} does not load {place}: credferry doctor shows the drop-in that "
        "it needs"
    )


def _is_same(path: str, place: str) -> bool:
    """Whether both paths name the same place. The last part, the link ``current``, is not followed."""
    if os.path.normpath(path) == os.path.normpath(place):
        return True
    one, two = (os.path.split(os.path.normpath(each)) for each in (path, place))
    return one[1] == two[1] and os.path.realpath(one[0]) == os.path.realpath(two[0])


CONDITIONS: tuple[Callable[[UnitState, str], str], ...] = (_is_read, _loads)
"""Checks of a unit and the path of its current generation. Each returns why it fails, or empty."""


def judge(
    vm: VmConfig, unit: UnitState, ground: Ground, way: Way = Way.RESTART, *, is_final: bool = True
) -> Readiness:
    """Whether a VM could start, or what prevents it. For a VM that is down: see `judge_key`.

    A push needs no start of the VM's own unit. Unless ``is_final``, the current generation is about to be
    replaced. Whether it opens does not matter then, and to open it costs operations of the TPM.
    """
    if not is_up(unit):
        return judge_key(ground)
    place = ground.place(vm.name)
    conditions = CONDITIONS if way is Way.RESTART else ()
    reasons = [reason for condition in conditions if (reason := condition(unit, place))]
    if reason := ground.lacks_room():
        reasons.append(reason)
    match key := _usable_key(ground):
        case Passing():
            return key
        case Obstructed(of_key):
            reasons += of_key
        case _ if is_final and not reasons:
            try:
                reason = ground.unopened(vm.name, key)
            except SealError as error:
                return Obstructed((describe(error),))
            if reason:
                return Spoiled(reason)
    return Obstructed(tuple(reasons)) if reasons else Ready()


def judge_key(ground: Ground) -> Ready | Obstructed | Passing:
    """Whether PID 1 takes the host's key, and the agent seals with it. Otherwise no VM can start."""
    match key := _usable_key(ground):
        case Passing() | Obstructed():
            return key
        case _:
            return Ready()


def _usable_key(ground: Ground) -> CredentialKey | Obstructed | Passing:
    try:
        key = ground.key()
    except KeyFileError as error:
        return Obstructed((describe(error),))
    if not ground.is_known(key):
        return Passing()
    return Obstructed((reason,)) if (reason := ground.lacks_tpm()) else key


def obstacle(readiness: Readiness) -> str:
    """What prevents a start or a push, in words; empty if nothing is known."""
    match readiness:
        case Ready():
            return ""
        case Obstructed(reasons):
            return "; ".join(reasons)
        case Spoiled(reason):
            return reason
        case Passing():
            return "the host's key has changed: the agent first seals everything again"


def is_asked(decision: Decision) -> bool:
    """Whether a decision asks systemd for a start of the VM, or for a push."""
    return decision.way is not None or decision.roll_back


def is_up(unit: UnitState | None) -> bool:
    """Whether a VM really runs. A unit that fails again and again is active at times, but does not count."""
    return unit is not None and unit.is_active and not unit.is_flapping


def unsealable(decision: Decision, reason: str) -> Decision:
    """Change a decision that has something sealed, while nothing can be sealed."""
    return replace(
        decision,
        state=State.REFUSED,
        seal=None,
        way=None,
        why="",
        unready=True,
        reasons=(reason,),
        wait_seconds=_LOOK_SECONDS,
    )


def withheld(decision: Decision, now: Observed, readiness: Readiness) -> Decision:
    """Change a decision that asks for a start or a push, unless it could succeed."""
    left = replace(decision, way=None, why="", roll_back=False, unready=True)
    match readiness:
        case Ready():
            return decision
        case Passing():
            return replace(left, state=State.CHANGING, look_again=True)
        case Spoiled(reason) if decision.way is not None and isinstance(now.desired, Desired):
            return replace(left, state=State.SEAL_DUE, seal=now.desired, reasons=(reason,))
        case Spoiled(reason):
            reasons: tuple[str, ...] = (reason,)
        case Obstructed(reasons):
            pass
    again = " again" if is_up(now.unit) else ""
    what = "a push to it would fail" if decision.push else f"it would not start{again}"
    told = tuple(f"{what}: {reason}" for reason in reasons)
    return replace(left, state=State.REFUSED, reasons=told, wait_seconds=_LOOK_SECONDS)
