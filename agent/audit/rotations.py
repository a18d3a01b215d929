# SPDX-License-Identifier: MIT
"""Each rotation as one story: published, sealed, restart asked for, result, launched, guest ready. Pure.

All records of one change carry the id of its run. A rollback is an exception: its records name the run of
the generation that the VM goes back to. Therefore the results of a restart belong to the restart's story,
whatever generation the VM ends with.

One job: from records to rotations. The rules are read together, and each depends on what the others leave.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from datetime import UTC
from typing import TYPE_CHECKING

from credferry.agent.audit.events import Event, Order

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime, tzinfo

    from credferry.agent.audit.periods import Period
    from credferry.agent.audit.records import Record


class RotationOutcome(enum.StrEnum):
    """Result of a rotation so far."""

    RESTARTED = "restarted"
    PUSHED = "pushed"
    """The running guest got the new values, and the VM stayed up."""
    STARTED = "started"
    """The VM was started for another reason, and so got the new values."""
    ROLLED_BACK = "rolled back"
    DOWN = "down"
    FAILED = "failed"
    HALTED = "held back"
    REFUSED = "launch refused"
    UNDER_WAY = "under way"
    SEALED = "sealed"
    """Sealed for the VM's next start, which has not happened yet."""
    SUPERSEDED = "superseded"
    """Another change came before the VM was started with this one."""
    PUBLISHED = "published"
    ORDERED = "ordered"
    """An operator gave an order that has no result yet."""
    DROPPED = "dropped"
    """An operator's order was not carried out."""

    @property
    def is_bad(self) -> bool:
        """Whether an operator should look at it."""
        return self in {
            RotationOutcome.ROLLED_BACK,
            RotationOutcome.DOWN,
            RotationOutcome.FAILED,
            RotationOutcome.HALTED,
            RotationOutcome.REFUSED,
            RotationOutcome.DROPPED,
        }


@dataclass(frozen=True, slots=True)
class Step:
    """One event of a story. ``label`` is the event's label, or ``guest ready``."""

    time: datetime
    label: str
    text: str


@dataclass(frozen=True, slots=True)
class Earlier:
    """An earlier generation that held the same value, and when it was sealed."""

    generation: int | None
    time: datetime


@dataclass(frozen=True, slots=True)
class Ordered:
    """An operator's order, the caller as the bus or the kernel reported it, and the reason."""

    order: str
    caller: str
    uid: int | None
    reason: str


@dataclass(slots=True)
class Rotation:
    """What one change, or one order of an operator, did to one VM."""

    vm: str
    run: str
    steps: list[Step] = field(default_factory=list)
    later: list[Step] = field(default_factory=list)
    """Starts and reboots with the same generation after the rotation was over."""
    generation: int | None = None
    changed: dict[str, str] = field(default_factory=dict)
    """Fingerprints of the credentials that changed, by name."""
    reverted: dict[str, Earlier] = field(default_factory=dict)
    """The credentials in ``changed`` that went back to an earlier value."""
    outcome: RotationOutcome = RotationOutcome.PUBLISHED
    ordered: Ordered | None = None

    @property
    def is_bad(self) -> bool:
        """Whether an operator should look at it. A rollback that an operator ordered is not bad."""
        is_wanted = self.ordered is not None and self.ordered.order == Order.ROLL_BACK
        return self.outcome.is_bad and not (is_wanted and self.outcome is RotationOutcome.ROLLED_BACK)

    @property
    def began(self) -> datetime:
        """Time of the first step."""
        return self.steps[0].time

    @property
    def ended(self) -> datetime:
        """Time of the last step; ``later`` does not count."""
        return self.steps[-1].time

    @property
    def seconds(self) -> float:
        """Seconds from the first step to the last."""
        return (self.ended - self.began).total_seconds()


@dataclass(frozen=True, slots=True)
class Story:
    """All rotations, and the records that belong to no rotation, each oldest first."""

    rotations: tuple[Rotation, ...]
    facts: tuple[Record, ...]


_OUTCOMES = {
    Event.PUBLISHED: RotationOutcome.PUBLISHED,
    Event.SEALED: RotationOutcome.SEALED,
    Event.RESTART_ASKED: RotationOutcome.UNDER_WAY,
    Event.RESTARTED: RotationOutcome.RESTARTED,
    Event.RESTART_FAILED: RotationOutcome.FAILED,
    Event.PUSH_ASKED: RotationOutcome.UNDER_WAY,
    Event.PUSHED: RotationOutcome.PUSHED,
    Event.PUSH_FAILED: RotationOutcome.FAILED,
    Event.ROLLED_BACK: RotationOutcome.ROLLED_BACK,
    Event.ROLLBACK_FAILED: RotationOutcome.DOWN,
    Event.HALTED: RotationOutcome.HALTED,
    Event.LAUNCH_REFUSED: RotationOutcome.REFUSED,
    Event.ORDERED: RotationOutcome.ORDERED,
    Event.ORDER_DROPPED: RotationOutcome.DROPPED,
}
_RESTART_ENDS = {
    *(Event.RESTARTED, Event.PUSHED, Event.ROLLED_BACK, Event.ROLLBACK_FAILED),
    Event.ORDER_DROPPED,
}
_RESTARTING = {Order.ROTATE, Order.RESTART, Order.ROLL_BACK, Order.RETRY}
"""Orders that may lead to a restart, and so begin a story."""
_LAUNCHING_ENDS = {Event.RESTARTED, Event.ROLLED_BACK, Event.ROLLBACK_FAILED}
"""Results of a launch. The launcher writes its stamp before its record, so a result may come before it."""
_LATE_SECONDS = 5.0
_ENDED = {
    RotationOutcome.RESTARTED,
    RotationOutcome.PUSHED,
    RotationOutcome.STARTED,
    RotationOutcome.ROLLED_BACK,
    RotationOutcome.SUPERSEDED,
}
_OF_A_VM = {Event.LAUNCHED, Event.GUEST_REBOOT, Event.LAUNCH_REFUSED, Event.WAITING}
"""Events whose sender does not know the rotation, or that come before it is known."""


def tell(records: Sequence[Record], periods: Sequence[Period] = ()) -> Story:
    """Build the story from all records of a journal, given oldest first."""
    teller = _RotationBuilder()
    for record in records:
        teller.hear(record)
    ready = {(each.vm, each.begin): each.ready for each in periods if each.ready is not None}
    for rotation in teller.rotations.values():
        for index, step in reversed(list(enumerate(rotation.steps))):
            if step.label == Event.LAUNCHED.label and (at := ready.get((rotation.vm, step.time))):
                place = next(
                    (
                        number
                        for number, each in enumerate(rotation.steps)
                        if number > index and each.time > at
                    ),
                    len(rotation.steps),
                )
                rotation.steps.insert(place, Step(at, "guest ready", "as systemd in the guest reported"))
    rotations = sorted(teller.rotations.values(), key=lambda each: each.began)
    return Story(tuple(rotations), tuple(teller.facts))


@dataclass(frozen=True, slots=True)
class _End:
    """A result that came before the record of its launch."""

    rotation: Rotation
    generation: int | None
    time: datetime


class _RotationBuilder:
    def __init__(self) -> None:
        self.rotations: dict[tuple[str, str], Rotation] = {}
        self.facts: list[Record] = []
        self._latest: dict[str, Rotation] = {}
        self._restarting: dict[str, Rotation] = {}
        self._pushing: dict[str, Rotation] = {}
        self._launched: dict[str, set[int | None]] = {}
        """By VM: the generations that it was launched with since a restart was asked for."""
        self._ends: dict[str, _End] = {}
        self._values: dict[tuple[str, str], dict[str, Earlier]] = {}
        self._now: dict[tuple[str, str], str] = {}

    def hear(self, record: Record) -> None:
        rotation = self._rotation(record)
        if rotation is None:
            self.facts.append(record)
            return
        step = Step(record.time, record.event.label, _text(record))
        is_over = rotation.outcome in _ENDED and record.vm not in self._restarting
        if record.event is Event.LAUNCHED:
            self._launched.setdefault(record.vm, set()).add(record.generation)
            if self._ended_by(record) is rotation:
                del self._ends[record.vm]
                rotation.steps.append(step)
                return
        if record.event in _OF_A_VM and is_over:
            rotation.later.append(step)
            return
        rotation.steps.append(step)
        self._judge(record, rotation)
        if record.event is Event.PUBLISHED:
            rotation.changed |= record.fingerprints
        elif record.event is Event.SEALED:
            self._learn(record, rotation)

    def _rotation(self, record: Record) -> Rotation | None:
        if not record.vm:
            return None
        restarting = self._restarting.get(record.vm)
        pushing = self._pushing.get(record.vm)
        match record.event:
            case Event.ORDERED:
                return self._of_order(record) if record.run and record.order in _RESTARTING else None
            case Event.ORDER_DROPPED:
                return self.rotations.get((record.run, record.vm))
            case Event.HELD | Event.RELEASED:
                return None
            case Event.ROLLED_BACK | Event.ROLLBACK_FAILED | Event.LAUNCHED | Event.LAUNCH_REFUSED if (
                restarting
            ):
                return restarting
            case Event.ROLLED_BACK | Event.ROLLBACK_FAILED if pushing:
                return pushing
            case Event.LAUNCHED if found := self._ended_by(record) or self._put_back_by(record):
                return found
            case Event.WAITING:
                latest = self._latest.get(record.vm)
                return latest if latest is not None and latest.outcome is RotationOutcome.SEALED else None
            case _:
                return self._of_run(record) if record.run else None

    def _of_order(self, record: Record) -> Rotation:
        """Begin a story for an order. A sealed change that waits for its start is not superseded."""
        ordered = Ordered(record.order, record.caller, record.caller_uid, record.reason)
        rotation = Rotation(record.vm, record.run, ordered=ordered)
        self.rotations[record.run, record.vm] = rotation
        if record.order == Order.ROLL_BACK:  # no record says that a rollback asks for its restart
            self._begin(record.vm, self._restarting, rotation)
        return rotation

    def _begin(self, vm: str, under_way: dict[str, Rotation], rotation: Rotation) -> None:
        """Note that a restart or a push of a VM begins. Launches before it are not its own."""
        under_way[vm] = rotation
        self._launched.pop(vm, None)
        self._ends.pop(vm, None)

    def _ended_by(self, record: Record) -> Rotation | None:
        """The rotation whose result was recorded a moment before this record of its launch."""
        end = self._ends.get(record.vm)
        if end is None or end.generation != record.generation:
            return None
        return end.rotation if (record.time - end.time).total_seconds() < _LATE_SECONDS else None

    def _put_back_by(self, record: Record) -> Rotation | None:
        """The rotation whose push has failed, if this is the launch of its rollback."""
        pushing = self._pushing.get(record.vm)
        if pushing is None or pushing.outcome is not RotationOutcome.FAILED:
            return None
        return pushing if pushing.generation != record.generation else None

    def _of_run(self, record: Record) -> Rotation:
        key = record.run, record.vm
        if key not in self.rotations:
            self.rotations[key] = rotation = Rotation(record.vm, record.run)
            latest = self._latest.get(record.vm)
            if latest is not None and latest.outcome in {RotationOutcome.SEALED, RotationOutcome.PUBLISHED}:
                latest.outcome = RotationOutcome.SUPERSEDED
            self._latest[record.vm] = rotation
        return self.rotations[key]

    def _judge(self, record: Record, rotation: Rotation) -> None:
        rotation.generation = rotation.generation or record.generation
        if record.event is Event.RESTART_ASKED:
            self._begin(record.vm, self._restarting, rotation)
        elif record.event is Event.PUSH_ASKED:  # a launch meanwhile is no part of the push
            self._begin(record.vm, self._pushing, rotation)
        elif record.event in _RESTART_ENDS:
            self._restarting.pop(record.vm, None)
            self._pushing.pop(record.vm, None)
        is_launched = record.generation in self._launched.get(record.vm, ())
        if record.event in _LAUNCHING_ENDS and not is_launched:
            self._ends[record.vm] = _End(rotation, record.generation, record.time)
        if record.event in {Event.RESTARTED, Event.PUSHED} and rotation.ordered is not None:
            self._deliver(record)
        if record.event in _OUTCOMES:
            rotation.outcome = _OUTCOMES[record.event]
        elif (
            record.event is Event.LAUNCHED
            and record.vm not in self._restarting
            and record.generation == rotation.generation
        ):
            rotation.outcome = RotationOutcome.STARTED

    def _deliver(self, record: Record) -> None:
        """Mark the latest change as started, if an order's restart gave the VM its generation."""
        latest = self._latest.get(record.vm)
        is_it = latest is not None and latest.generation == record.generation
        if latest is not None and is_it and latest.outcome is RotationOutcome.SEALED:
            latest.outcome = RotationOutcome.STARTED

    def _learn(self, record: Record, rotation: Rotation) -> None:
        """Remember when each value was sealed, and note which changed values are earlier ones."""
        rotation.generation = record.generation
        for name, fingerprint in record.fingerprints.items():
            known = self._values.setdefault((record.vm, name), {})
            if self._now.get((record.vm, name), fingerprint) != fingerprint and fingerprint in known:
                rotation.reverted[name] = known[fingerprint]
            # The last time that it was sealed: "back to" names the newest generation with this value.
            known[fingerprint] = Earlier(record.generation, record.time)
            self._now[record.vm, name] = fingerprint


def _text(record: Record) -> str:
    """A record's message without the VM's name at its beginning."""
    text = record.message.removeprefix(f"{record.vm}: ")
    return text.removeprefix(f"VM {record.vm} ")


def of_credential(rotations: Sequence[Rotation], name: str) -> list[Rotation]:
    """The rotations in which a credential changed."""
    return [each for each in rotations if name in each.changed]


def within(rotation: Rotation, since: float | None, until: float | None) -> bool:
    """Whether a rotation overlaps a period. Bounds are seconds since 1970; None is no bound."""
    return (since is None or rotation.ended.timestamp() >= since) and (
        until is None or rotation.began.timestamp() <= until
    )


def describe_revert(earlier: Mapping[str, Earlier], name: str, where: tzinfo | None = UTC) -> str:
    """Say that a value is an earlier one; empty for a new value. None stands for the host's time zone."""
    if name not in earlier:
        return ""
    time = earlier[name].time.astimezone(where)
    return (
        f"back to the value of generation {earlier[name].generation}, of {time:%Y-%m-%d %H:%M:%S} {time:%Z}"
    )
