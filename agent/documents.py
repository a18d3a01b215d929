# SPDX-License-Identifier: MIT
"""What verbs print with ``--json``: the types of their documents, from which the schemas are made.

Fields are added, never removed or given another meaning, within a major version.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import msgspec

from agent.reconcile import State
from launcher.handoff import Channel, Kind

Name = Annotated[str, msgspec.Meta(description="The VM, as the configuration names it.")]
Unit = Annotated[str, msgspec.Meta(description="Its systemd unit.")]


class _Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A document of exactly these fields."""


class Published(_Document, frozen=True):
    """What is published for a VM. The agent tells nobody: who reads it from there finds nothing here."""

    digest: Annotated[
        str | None, msgspec.Meta(description="Stands for all of it; null where it cannot be had.")
    ]
    credentials: Annotated[
        dict[str, str],
        msgspec.Meta(description="Fingerprints by credential, keyed: they tell nothing about values."),
    ]


class Generation(_Document, frozen=True):
    """A generation of a VM's credentials."""

    generation: int
    digest: Annotated[
        str | None, msgspec.Meta(description="Stands for its content; null where the agent was asked.")
    ]


class StatusRow(_Document, frozen=True):
    """Where a VM stands."""

    vm: Name
    unit: Unit
    unit_state: Annotated[str, msgspec.Meta(description="ActiveState (SubState), or unknown.")]
    state: State
    since: Annotated[
        str | None,
        msgspec.Meta(description="Since when, RFC 3339 in UTC; null where nothing tells."),
    ]
    published: Published
    sealed: Annotated[Generation | None, msgspec.Meta(description="What its next start gets.")]
    running: Annotated[Generation | None, msgspec.Meta(description="What it was started with.")]
    held: Annotated[bool, msgspec.Meta(description="Whether an operator holds it.")]
    last_result: Annotated[
        str, msgspec.Meta(description="What came of its last start; empty where nothing is known.")
    ]
    system: Annotated[
        Literal["current", "older"] | None,
        msgspec.Meta(description="Of a VM of microvm.nix: whether it was booted from its current system."),
    ]
    reasons: Annotated[list[str], msgspec.Meta(description="Why it is not in step.")]


class PlanRow(_Document, frozen=True):
    """What a look would do about a VM now."""

    vm: Name
    state: State
    steps: Annotated[list[str], msgspec.Meta(description="What it would do, in words, in order.")]
    reasons: Annotated[list[str], msgspec.Meta(description="Why not more.")]


class SyncRow(_Document, frozen=True):
    """What has become of a VM."""

    vm: Name
    sealed: Annotated[bool, msgspec.Meta(description="Whether a generation was sealed for it.")]
    state: State
    reason: Annotated[str, msgspec.Meta(description="Why it is not in step; empty where it is.")]


class OrderRow(_Document, frozen=True):
    """What has become of a VM by an operator's order."""

    vm: Name
    state: State
    generation: Annotated[int, msgspec.Meta(description="That which it runs; 0 for none.")]
    reason: Annotated[str, msgspec.Meta(description="Why it is not in step; empty where it is.")]


class CheckRow(_Document, frozen=True):
    """One credential that a VM is to get."""

    vm: Name
    unit: Unit
    channel: Channel
    credential: Annotated[str, msgspec.Meta(description="Its name in the guest.")]
    kind: Kind
    origin: Annotated[
        str, msgspec.Meta(description="The secret's name in the source, or `the configuration`.")
    ] = msgspec.field(name="from")


DOCUMENTS: dict[str, type[_Document]] = {
    "status": StatusRow,
    "plan": PlanRow,
    "sync": SyncRow,
    "rotate": OrderRow,
    "check": CheckRow,
}
"""What verbs print a list of; ``release`` and ``retry`` print what ``sync`` does, ``rollback`` what
``rotate`` does."""


def schema(verb: str) -> dict[str, Any]:
    """The JSON Schema (2020-12) of what a verb prints."""
    made = msgspec.json.schema(list[DOCUMENTS[verb]])  # type: ignore[valid-type]  # mypy takes no type from a table
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"credferry {verb} --json",
    } | made


def moment(seconds: int) -> str | None:
    """Seconds since 1970 as documents have moments; 0 is for none."""
    if not seconds:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
