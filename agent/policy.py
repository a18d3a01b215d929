# SPDX-License-Identifier: MIT
"""What a change of a VM's secrets does to the VM while it runs, and when: a part of the configuration."""

from __future__ import annotations

import enum
from typing import Annotated

import msgspec

Seconds = Annotated[float, msgspec.Meta(ge=0, le=86_400)]


class Policy(enum.StrEnum):
    """What a change of a VM's secrets does to the VM while it runs."""

    RESTART = "restart"
    HOLD = "hold"
    """It is sealed for the next start, and shown as due; somebody else restarts the VM."""
    IGNORE = "ignore"
    """It is sealed for the next start, and that is all."""


class Window(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """When restarts are allowed: for so many minutes from each moment of a calendar event."""

    starts: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    """In systemd's calendar syntax (systemd.time(7)), such as ``Sat,Sun 02:00`` or ``*-*-* 03:00 UTC``."""
    minutes: Annotated[int, msgspec.Meta(ge=1, le=10_080)]


class RestartPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Said in ``[rollout]`` for all VMs, and in a VM's own table for that one."""

    policy: Policy = Policy.RESTART
    windows: tuple[Window, ...] = ()
    """Restarts happen within one of these only; none for at any time."""
    restarts_per_hour: Annotated[int, msgspec.Meta(ge=0, le=3600)] = 0
    """At most so many restarts of the VM within any hour; 0 for no limit."""
    quiet_seconds: Seconds = 0.0
    """For how long nothing new must have been published for the VM before it is restarted."""
    quiet_max_seconds: Seconds = 600.0
    """After this long it is restarted though publications do not fall quiet."""
    health: tuple[Annotated[str, msgspec.Meta(min_length=1)], ...] = ()
    """A command that says, by its status, whether a VM that was restarted does its work."""


INHERITED = frozenset(field.name for field in msgspec.structs.fields(RestartPolicy))
"""Keys that a VM's table takes from ``[rollout]`` where it has not its own."""
