# SPDX-License-Identifier: MIT
"""Small records of a VM beside its generations. Each is one JSON file."""

from __future__ import annotations

import enum

import msgspec

from credferry.agent.config.values import GroupName, HostName


class Assumed(msgspec.Struct, frozen=True):
    """What an invocation without evidence is assumed to run: what was current when the agent saw it."""

    invocation_id: str
    digest: str
    generation: int = 0
    """0 where it is unknown."""


class Way(enum.StrEnum):
    """How a running VM gets a generation."""

    RESTART = "restart"
    PUSH = "push"
    """To the running guest, which stays up."""


class Pushed(msgspec.Struct, frozen=True):
    """What the guest of an invocation holds, since the agent has pushed to it. A start makes it void."""

    invocation_id: str
    digest: str
    generation: int
    run: str = ""
    moment: float = 0.0
    """When the push was proved, in seconds since the host's boot; 0 if the guest had this at its start."""
    asked: int = 0
    """The generation of a push that has no known end, 0 for none. The guest may hold that one instead."""


class Outcome(enum.StrEnum):
    """The state of a rollout onto a digest that has not succeeded."""

    RESTARTING = "restarting"
    """Written before the restart or the push. If the agent crashes in a restart, it took the VM down."""
    FAILED = "failed"
    """The restart failed. The agent will roll the VM back."""
    ROLLED_BACK = "rolled back"
    HALTED = "halted"
    """Not restarted, because another VM's restart for the same change failed."""
    RETRY = "retry"
    """To be tried again: an operator asked for it, or the generation did not cause the failure."""
    PUT_OFF = "put off"
    """Not restarted, because the unit before the restart failed. The agent tries again after a while."""
    UNPUSHED = "unpushed"
    """A push could not bring it to the guest. The VM's ``on_live_failure`` says what follows."""


class Attempt(msgspec.Struct, frozen=True):
    """The last rollout of a VM onto a digest; ``previous`` is the generation before it, 0 for unknown."""

    digest: str
    outcome: Outcome
    reason: str = ""
    previous: int = 0
    run: str = ""
    """The change that it rolled out. The rollout of a change stops at the first VM that fails."""
    by_operator: bool = False
    """Whether an operator asked for the rollback. Then nothing has failed."""
    order: str = ""
    """The run of the operator's order that this rollout carries out; empty for none."""
    halted_for: str = ""
    """The VM whose failure stopped this rollout, where the outcome is `Outcome.HALTED`."""
    ran: int = 0
    """The generation that the VM ran when an operator ordered a rollback; 0 for none.

    The VM goes back to it if the ordered generation does not start.
    """
    before: str = ""
    """The unit's invocation when this was written. While it is unchanged, the restart has had no effect."""
    way: Way = Way.RESTART
    """A push leaves the VM up. If the VM is down nevertheless, the agent has not taken it down."""
    moment: float = 0.0
    """When the restart was put off, in seconds since the host's boot."""


class Renewed(msgspec.Struct, frozen=True):
    """Translations of digests: from those of earlier host keys to those of the present key."""

    digests: dict[str, str] = {}


class Approved(msgspec.Struct, frozen=True):
    """What an operator last approved for a VM with the policy ``approve``."""

    digest: str


class Owed(msgspec.Struct, frozen=True):
    """A unit of the operator that is still to run after a restart of a VM."""

    unit: str
    moment: float = 0.0
    """When it last failed, in seconds since the host's boot; 0 if it was not tried yet."""
    reason: str = ""
    """Why it failed."""


class Claim(msgspec.Struct, frozen=True):
    """A slot of a fleet that a VM has, or may have. Written before the fleet is asked for it."""

    group: GroupName
    host: HostName
    """The name of this host in the fleet when the slot was asked for."""
    change: str = ""
    """The run for which it was asked for."""
    since: float = 0.0
    """When this was written, in seconds since 1970. For display only."""
    halt: str = ""
    """Why the group is halted, or is to be halted, because of this VM; empty if nothing failed."""
    is_told: bool = False
    """Whether the fleet knows of that halt."""


class LastTurn(msgspec.Struct, frozen=True):
    """When the agent last began or ended a restart or push of a VM, by two clocks."""

    moment: float
    """Seconds since the host's boot."""
    wall: float
    """Seconds since 1970."""


class Ages(msgspec.Struct, frozen=True):
    """Since when a VM's credentials have had the values of its current generation, in seconds since 1970."""

    since: dict[str, float] = {}


class WorkedWith(msgspec.Struct, frozen=True):
    """A generation that a VM has run well."""

    generation: int
    digest: str


class Worked(msgspec.Struct, frozen=True):
    """The generations that a VM has run well, each once, in the order in which it last did."""

    generations: list[WorkedWith] = []


class Restarts(msgspec.Struct, frozen=True):
    """When the agent last restarted a VM, in seconds since the host's boot."""

    moments: list[float] = []
