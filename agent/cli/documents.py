# SPDX-License-Identifier: MIT
"""What verbs print with ``--json``: the types of their documents, from which the schemas are made.

Fields are added, never removed or given another meaning, within a major version.
One job: the contract with programs that read JSON, in one place.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import msgspec

from credferry.agent.reconcile.decision import State
from credferry.agent.reconcile.status import Arrival
from credferry.agent.store.records import Way
from credferry.launcher.handoff import Channel, Kind

Name = Annotated[str, msgspec.Meta(description="The VM's name in the configuration.")]
Unit = Annotated[str, msgspec.Meta(description="Its systemd unit.")]


class Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A document of exactly these fields."""


class Published(Document, frozen=True):
    """What is published for a VM. The agent tells nobody: its answers have nothing here."""

    digest: Annotated[
        str | None, msgspec.Meta(description="Identifies the generation's content; null if unknown.")
    ]
    credentials: Annotated[
        dict[str, str],
        msgspec.Meta(
            description="Keyed fingerprints of the values, by credential. They do not reveal the values."
        ),
    ]


class Generation(Document, frozen=True):
    """A generation of a VM's credentials."""

    generation: int
    digest: Annotated[
        str | None,
        msgspec.Meta(
            description="Identifies the content; null if the agent answered, or without the host's key."
        ),
    ]


class StatusRow(Document, frozen=True):
    """The state of a VM."""

    vm: Name
    unit: Unit
    unit_state: Annotated[str, msgspec.Meta(description="ActiveState (SubState), or unknown.")]
    state: State
    since: Annotated[
        str | None,
        msgspec.Meta(description="When it entered this state, RFC 3339 in UTC; null if unknown."),
    ]
    published: Published
    sealed: Annotated[Generation | None, msgspec.Meta(description="What its next start gets.")]
    running: Annotated[Generation | None, msgspec.Meta(description="What it runs now.")]
    held: Annotated[bool, msgspec.Meta(description="Whether an operator holds it.")]
    last_result: Annotated[str, msgspec.Meta(description="How its last start or push ended; may be empty.")]
    system: Annotated[
        Literal["current", "older"] | None,
        msgspec.Meta(description="For a VM of microvm.nix: whether it was booted from its current system."),
    ]
    reasons: Annotated[
        list[str],
        msgspec.Meta(
            description="Why it does not run what is published, and which secrets end or are overdue."
        ),
    ]
    agent: Annotated[
        bool, msgspec.Meta(description="Whether an agent runs. Without one, nothing that is due is done.")
    ] = True
    arrived: Annotated[
        Arrival | None, msgspec.Meta(description="How it got what it runs; null if unknown.")
    ] = None
    next: Annotated[
        Way | None, msgspec.Meta(description="How it would get a change; null if it is down.")
    ] = None
    next_reason: Annotated[
        str, msgspec.Meta(description="Why a live VM would be restarted; else empty.")
    ] = ""


class PlanRow(Document, frozen=True):
    """What a check would do about a VM now."""

    vm: Name
    state: State
    steps: Annotated[list[str], msgspec.Meta(description="What the agent would do, in words, in order.")]
    reasons: Annotated[list[str], msgspec.Meta(description="Why the agent would do no more.")]


class SyncRow(Document, frozen=True):
    """The result for a VM."""

    vm: Name
    sealed: Annotated[bool, msgspec.Meta(description="Whether a generation was sealed for it.")]
    state: State
    reason: Annotated[
        str, msgspec.Meta(description="Why it does not run what is published; empty if it does.")
    ]
    did: Annotated[
        str | None,
        msgspec.Meta(description="What a release or retry changed, or that nothing was; null for a sync."),
    ] = None


class OrderRow(Document, frozen=True):
    """The result of an operator's order for a VM."""

    vm: Name
    state: State
    generation: Annotated[int, msgspec.Meta(description="The generation that it runs; 0 for none.")]
    reason: Annotated[
        str, msgspec.Meta(description="Why it does not run what is published; empty if it does.")
    ]


class CheckRow(Document, frozen=True):
    """One credential that a VM gets."""

    vm: Name
    unit: Unit
    channel: Channel
    credential: Annotated[str, msgspec.Meta(description="Its name in the guest.")]
    kind: Kind
    origin: Annotated[
        str, msgspec.Meta(description="The secret's name in the source, or `the configuration`.")
    ] = msgspec.field(name="from")
    change: Annotated[
        Way, msgspec.Meta(description="Whether a change is pushed to the running guest, or restarts the VM.")
    ]


Moment = Annotated[str, msgspec.Meta(description="RFC 3339, in UTC.")]
Run = Annotated[str, msgspec.Meta(description="The id of the change: CREDFERRY_RUN in the journal.")]


class StepRow(Document, frozen=True):
    """One moment of a rotation."""

    time: Moment
    offset_seconds: Annotated[float, msgspec.Meta(description="Seconds since the rotation began.")]
    event: Annotated[str, msgspec.Meta(description="The record's event, or `guest ready`.")]
    message: str


class EarlierRow(Document, frozen=True):
    """When a value was sealed before."""

    generation: int | None
    time: Moment


class ChangeRow(Document, frozen=True):
    """A credential that a rotation changed."""

    credential: str
    fingerprint: Annotated[
        str, msgspec.Meta(description="A keyed fingerprint. It does not reveal the value.")
    ]
    reverted_to: Annotated[EarlierRow | None, msgspec.Meta(description="Null for a new value.")]


class OrderedRow(Document, frozen=True):
    """What an operator ordered."""

    order: Annotated[str, msgspec.Meta(description="The verb, such as rotate.")]
    caller: Annotated[str, msgspec.Meta(description="The user's name; empty if the host knows none.")]
    caller_uid: Annotated[
        int | None, msgspec.Meta(description="The user id, as the bus or the kernel reports it.")
    ]
    reason: Annotated[str, msgspec.Meta(description="The reason that the user gave; empty for none.")]


class RotationRow(Document, frozen=True):
    """What one change, or one order, did to one VM."""

    vm: Name
    run: Run
    generation: int | None
    began: Moment
    ended: Moment
    seconds: float
    outcome: Annotated[str, msgspec.Meta(description="The result, such as restarted or rolled back.")]
    changed: list[ChangeRow]
    steps: list[StepRow]
    later: Annotated[list[StepRow], msgspec.Meta(description="Later starts with the same generation.")]
    ordered: Annotated[
        OrderedRow | None, msgspec.Meta(description="The order that began it; null if a changed secret did.")
    ]


class RecordRow(Document, frozen=True):
    """One record of the audit."""

    time: Moment
    event: str
    vm: Annotated[str, msgspec.Meta(description="Empty if the record concerns no VM.")]
    unit: str
    run: Annotated[str, msgspec.Meta(description="The id of the change; empty for none.")]
    generation: int | None
    fingerprints: dict[str, str]
    credentials: list[str]
    channel: Annotated[
        str,
        msgspec.Meta(description="The channel in which the launcher passed the credentials; else empty."),
    ]
    sequence: Annotated[int | None, msgspec.Meta(description="Its number in the chain.")]
    message: str
    ordered: Annotated[
        OrderedRow | None, msgspec.Meta(description="Null if the record is not about an operator's order.")
    ]


class PeriodRow(Document, frozen=True):
    """A credential that a VM ran, from one start to its end."""

    vm: Name
    credential: str
    fingerprint: Annotated[
        str | None, msgspec.Meta(description="Null if the journal no longer has the record of the sealing.")
    ]
    generation: int | None
    begin: Moment = msgspec.field(name="from")
    end: Annotated[str | None, msgspec.Meta(description="Null while it runs.")] = msgspec.field(name="to")
    seconds: float | None
    ended_by: str | None
    guest_ready: str | None
    unit: Unit
    channel: str
    run: Run


class SecretRow(Document, frozen=True):
    """A credential of a VM. Nothing here is a value, or the length of one."""

    credential: Annotated[str, msgspec.Meta(description="Its name in the guest.")]
    kind: Kind
    origin: Annotated[
        str, msgspec.Meta(description="The secret's name in the source, or `the configuration`.")
    ] = msgspec.field(name="from")
    published: Annotated[
        str | None, msgspec.Meta(description="The keyed fingerprint of what is published; null for nothing.")
    ]
    running: Annotated[
        str | None, msgspec.Meta(description="The same of what the VM runs with; null if unknown.")
    ]
    changed: Annotated[
        str | None,
        msgspec.Meta(description="When the published value came, RFC 3339 in UTC; null if unknown."),
    ]
    expires: Annotated[
        str | None,
        msgspec.Meta(
            description="When it ends by its own words (certificate, JWT); null if it does not say."
        ),
    ]
    max_age_days: Annotated[
        int | None, msgspec.Meta(description="How old it should become at most; null for no limit.")
    ] = None


class WiringRow(Document, frozen=True):
    """How the VM's unit starts its hypervisor."""

    launcher: Annotated[
        bool | None, msgspec.Meta(description="Whether the unit starts the launcher; null if unknown.")
    ]
    file: Annotated[
        str | None, msgspec.Meta(description="What says so: a script, a spec, or the unit's file.")
    ]
    drop_ins: list[str]


class ShowRow(Document, frozen=True):
    """Everything that is known of a VM."""

    status: StatusRow
    settings: Annotated[
        dict[str, Any],
        msgspec.Meta(
            description="Its effective configuration, with what comes from [rollout] and defaults."
        ),
    ]
    credentials: list[SecretRow]
    wiring: WiringRow | None
    next: Annotated[list[str], msgspec.Meta(description="What the agent would do now, in words, in order.")]
    rotations: Annotated[list[RotationRow], msgspec.Meta(description="The last ones, the latest first.")]


class FleetSlotRow(Document, frozen=True):
    """A slot that a VM holds, on any host."""

    slot: Annotated[int | None, msgspec.Meta(description="Its number; null for a key that is no slot's.")]
    host: Annotated[
        str | None, msgspec.Meta(description="The host's name in the fleet; null if unreadable.")
    ]
    vm: Annotated[str | None, msgspec.Meta(description="The VM's name there; null if unreadable.")]
    change: Annotated[str, msgspec.Meta(description="The run of the change on that host.")]
    since: Annotated[
        str | None, msgspec.Meta(description="RFC 3339 in UTC, by the clock of that host; null if unknown.")
    ]


class FleetHaltRow(Document, frozen=True):
    """Why nothing in a group is restarted."""

    host: Annotated[str | None, msgspec.Meta(description="The host that halted it; null if unreadable.")]
    vm: Annotated[str | None, msgspec.Meta(description="The VM that failed; null for an operator's halt.")]
    why: str
    change: Annotated[str, msgspec.Meta(description="The run of the change on that host.")]
    since: Annotated[
        str | None, msgspec.Meta(description="RFC 3339 in UTC, by the clock of that host; null if unknown.")
    ]


class FleetHostRow(Document, frozen=True):
    """A host whose agent has reported lately. It is for display: no decision depends on it."""

    host: Annotated[str, msgspec.Meta(description="The host's name in the fleet.")]
    version: Annotated[str, msgspec.Meta(description="The release of its agent.")]
    vms: Annotated[dict[str, int], msgspec.Meta(description="How many VMs of the group are in which state.")]
    since: Annotated[
        str | None,
        msgspec.Meta(description="When this last changed, RFC 3339 in UTC, by the clock of that host."),
    ]


class FleetGroupRow(Document, frozen=True):
    """A group of the fleet."""

    group: str
    limit: Annotated[
        int | None,
        msgspec.Meta(
            description="How many VMs of it may be down for a change at a time; null if it cannot be read."
        ),
    ]
    held: list[FleetSlotRow]
    halt: Annotated[FleetHaltRow | None, msgspec.Meta(description="Null unless the group is halted.")]
    hosts: list[FleetHostRow]


DOCUMENTS: dict[str, type[Document]] = {
    "status": StatusRow,
    "show": ShowRow,
    "plan": PlanRow,
    "sync": SyncRow,
    "restart": OrderRow,
    "check": CheckRow,
    "audit": RotationRow,
    "audit --records": RecordRow,
    "audit --periods": PeriodRow,
    "fleet status": FleetGroupRow,
}
"""What verbs print a list of; ``release`` and ``retry`` print what ``sync`` does, ``rollback`` what
``restart`` does."""


def schema(verb: str) -> dict[str, Any]:
    """The JSON Schema (2020-12) of what a verb prints."""
    made = msgspec.json.schema(list[DOCUMENTS[verb]])  # type: ignore[valid-type]  # mypy takes no type from a table
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"credferry {verb} --json",
    } | made


def rfc3339(seconds: int) -> str | None:
    """Seconds since 1970 as documents have moments; 0 is for none."""
    if not seconds:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
