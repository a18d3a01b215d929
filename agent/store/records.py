# SPDX-License-Identifier: MIT
"""What the store remembers of a VM beside its generations: small records, each a JSON file of its own."""

from __future__ import annotations

import enum

import msgspec


class Assumed(msgspec.Struct, frozen=True):
    """What an invocation that no evidence was kept of is taken to run: what was current when it was seen."""

    invocation_id: str
    digest: str
    generation: int = 0
    """0 where it is not known."""


class Outcome(enum.StrEnum):
    """How far a rollout onto a digest has come, where that has not ended well."""

    RESTARTING = "restarting"
    """Written before systemd is asked: a VM that is down after a crash of ours was taken down by us."""
    FAILED = "failed"
    """Its restart failed, and it is to be put back on what it ran before."""
    ROLLED_BACK = "rolled back"
    HALTED = "halted"
    """It was held back, since another VM's restart for the same change failed."""
    RETRY = "retry"
    """It is to be tried again: an operator has said so, or the failure says nothing of the generation."""


class Attempt(msgspec.Struct, frozen=True):
    """The last rollout of a VM onto a digest; ``previous`` is the generation before it, 0 for unknown."""

    digest: str
    outcome: Outcome
    reason: str = ""
    previous: int = 0
    run: str = ""
    """The change that it rolled out; a change's rollout stops at the first VM that fails."""
    by_operator: bool = False
    """Whether it was an operator who had the VM put back: nothing has failed."""
    order: str = ""
    """The run of the operator's order that it carries out; empty for none."""
    halted_for: str = ""
    """The VM whose failure held this one back, where the outcome is `Outcome.HALTED`."""
    before: str = ""
    """The unit's invocation when it was noted; while that is the last, nothing has come of it."""


class Renewed(msgspec.Struct, frozen=True):
    """What digests made with an earlier key of the host are with the present one."""

    digests: dict[str, str] = {}


class Restarts(msgspec.Struct, frozen=True):
    """When a VM was last restarted by us, in seconds since the host's boot."""

    moments: list[float] = []
