# SPDX-License-Identifier: MIT
"""Stories and periods, from records alone."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from credferry.agent.audit.events import Event, Order
from credferry.agent.audit.history import History, UnitEvent, UnitRecord
from credferry.agent.audit.periods import periods
from credferry.agent.audit.records import Record
from credferry.agent.audit.rotations import Ordered, RotationOutcome, tell, within

BEGIN = datetime(2026, 11, 23, 8, 0, tzinfo=UTC)
ROTATION = (Event.PUBLISHED, Event.SEALED, Event.RESTART_ASKED, Event.LAUNCHED, Event.RESTARTED)


def at(seconds: float) -> datetime:
    """A moment so long after the beginning."""
    return BEGIN + timedelta(seconds=seconds)


def record(
    event: Event, seconds: float, *, run: str = "a", generation: int = 1, value: str = "1", vm: str = "web"
) -> Record:
    """A record about one VM with one credential."""
    has_value = event in {Event.PUBLISHED, Event.SEALED}
    return Record(
        time=at(seconds),
        event=event,
        message=f"{vm}: {event.label}",
        vm=vm,
        run="" if event in {Event.HELD, Event.REFUSED, Event.WAITING} else run,
        generation=generation,
        fingerprints={"KEY": value} if has_value else {},
        credentials=("KEY",),
        unit=f"microvm@{vm}.service",
        boot="1",
        invocation=f"{run}{generation}",
    )


def rotation(run: str, begin: float, generation: int, value: str) -> list[Record]:
    """A rotation in which all goes well."""
    return [
        record(event, begin + number, run=run, generation=generation, value=value)
        for number, event in enumerate(ROTATION)
    ]


ENDS: dict[RotationOutcome, tuple[Event, ...]] = {
    RotationOutcome.PUBLISHED: ROTATION[:1],
    RotationOutcome.SEALED: ROTATION[:2],
    RotationOutcome.UNDER_WAY: ROTATION[:3],
    RotationOutcome.RESTARTED: ROTATION,
    RotationOutcome.STARTED: (*ROTATION[:2], Event.LAUNCHED),
    RotationOutcome.HALTED: (*ROTATION[:2], Event.HALTED),
    RotationOutcome.FAILED: (*ROTATION[:3], Event.RESTART_FAILED),
    RotationOutcome.ROLLED_BACK: (*ROTATION[:3], Event.RESTART_FAILED, Event.LAUNCHED, Event.ROLLED_BACK),
    RotationOutcome.DOWN: (*ROTATION[:3], Event.RESTART_FAILED, Event.ROLLBACK_FAILED),
    RotationOutcome.REFUSED: (*ROTATION[:3], Event.LAUNCH_REFUSED),
}


@pytest.mark.parametrize("outcome", ENDS)
def test_how_a_rotation_ends(outcome: RotationOutcome) -> None:
    """What a rotation came to is its last decisive record."""
    (story,) = tell([record(event, number) for number, event in enumerate(ENDS[outcome])]).rotations
    assert story.outcome is outcome
    assert [step.label for step in story.steps] == [event.label for event in ENDS[outcome]]
    assert story.seconds == len(ENDS[outcome]) - 1


def test_a_rollback_belongs_to_the_restart_that_failed() -> None:
    """It names the older generation and its run, as the launch does; yet both are the newer's story."""
    bad = [*ROTATION[:3], Event.RESTART_FAILED]
    records = [
        *rotation("a", 0, 1, "1"),
        *(record(event, 10 + number, run="b", generation=2, value="2") for number, event in enumerate(bad)),
        record(Event.LAUNCHED, 20, run="a", generation=1),
        record(Event.ROLLED_BACK, 21, run="a", generation=1),
        *rotation("c", 30, 3, "1"),
    ]
    first, second, third = tell(records).rotations
    assert (first.outcome, second.outcome, third.outcome) == (
        RotationOutcome.RESTARTED,
        RotationOutcome.ROLLED_BACK,
        RotationOutcome.RESTARTED,
    )
    assert [step.label for step in second.steps][-2:] == ["launched", "rolled back"]
    assert not first.later
    assert third.reverted["KEY"].generation == 1


def test_a_push_ends_a_rotation() -> None:
    """What is pushed is no start: a later start with the same generation is not a part of the story."""
    pushed = (*ROTATION[:2], Event.PUSH_ASKED, Event.PUSHED)
    records = [record(event, number) for number, event in enumerate(pushed)]
    (story,) = tell([*records, record(Event.LAUNCHED, 50)]).rotations
    assert (story.outcome, story.is_bad) == (RotationOutcome.PUSHED, False)
    assert [step.label for step in story.steps] == ["published", "sealed", "push asked", "pushed"]
    assert [step.label for step in story.later] == ["launched"]


def test_a_push_that_fails_is_followed_by_a_restart_or_a_rollback() -> None:
    """Both belong to the story of the push, though a rollback names the older generation and its run."""
    failed = [*ROTATION[:2], Event.PUSH_ASKED, Event.PUSH_FAILED]
    restarted = [*failed, *ROTATION[2:]]
    (story,) = tell([record(event, number) for number, event in enumerate(restarted)]).rotations
    assert story.outcome is RotationOutcome.RESTARTED
    records = [
        *rotation("a", 0, 1, "1"),
        *(record(event, 10 + number, run="b", generation=2) for number, event in enumerate(failed)),
        record(Event.ROLLED_BACK, 21, run="a", generation=1),
    ]
    first, second = tell(records).rotations
    assert (first.outcome, second.outcome) == (RotationOutcome.RESTARTED, RotationOutcome.ROLLED_BACK)
    started = [record(event, number) for number, event in enumerate([*failed, Event.LAUNCHED])]
    assert tell(started).rotations[0].outcome is RotationOutcome.STARTED


def test_values_that_came_back() -> None:
    """A value is known again by its fingerprint, by the newest generation that had it; a new one is not."""
    records = [
        *rotation("a", 0, 1, "old"),
        *rotation("b", 10, 2, "new"),
        *rotation("c", 20, 3, "old"),
        *rotation("d", 30, 4, "old"),
        *rotation("e", 40, 5, "newer"),
        *rotation("f", 50, 6, "old"),
    ]
    reverted = [each.reverted for each in tell(records).rotations]
    assert [sorted(each) for each in reverted] == [[], [], ["KEY"], [], [], ["KEY"]]
    assert (reverted[2]["KEY"].generation, reverted[2]["KEY"].time) == (1, at(1))
    assert reverted[5]["KEY"].generation == 4


def ordered(order: Order, seconds: float, run: str) -> Record:
    """An operator's order."""
    return replace(
        record(Event.ORDERED, seconds, run=run),
        generation=None,
        order=order.value,
        caller="jane",
        caller_uid=1000,
        reason="a test",
    )


def test_an_order_begins_a_story_of_its_own() -> None:
    """What follows from it is its story, the launch too, which names the change; the change's has ended."""
    records = [
        *rotation("a", 0, 1, "1"),
        ordered(Order.ROTATE, 100, "o"),
        record(Event.RESTART_ASKED, 101, run="o"),
        record(Event.LAUNCHED, 102, run="a"),
        record(Event.RESTARTED, 103, run="o"),
    ]
    for past in (records, [*records[:7], records[8], replace(records[7], time=at(103.5))]):
        first, second = tell(past).rotations
        assert (first.outcome, first.seconds, first.later) == (RotationOutcome.RESTARTED, 4, [])
        assert (second.outcome, second.began, second.later) == (RotationOutcome.RESTARTED, at(100), [])
        assert sorted(step.label for step in second.steps) == [
            *("launched", "ordered", "restart asked", "restarted"),
        ]
        assert second.ordered == Ordered("rotate", "jane", 1000, "a test")
        assert first.ordered is None


def test_an_ordered_rollback_is_its_own_story_and_nothing_bad() -> None:
    """The launch of the older generation, and that the VM is back on it, belong to the order."""
    for late in (False, True):
        launch = record(Event.LAUNCHED, 102.5 if late else 101, run="a")
        end = record(Event.ROLLED_BACK, 102, run="o")
        records = [
            *rotation("a", 0, 1, "1"),
            *rotation("b", 10, 2, "2"),
            ordered(Order.ROLL_BACK, 100, "o"),
            *((end, launch) if late else (launch, end)),
        ]
        first, second, third = tell(records).rotations
        assert (first.later, second.later, third.later) == ([], [], [])
        assert (second.outcome, third.outcome) == (RotationOutcome.RESTARTED, RotationOutcome.ROLLED_BACK)
        assert {step.label for step in third.steps} == {"ordered", "launched", "rolled back"}
        assert not third.is_bad


def test_an_order_that_delivers_a_change() -> None:
    """A change that waited for its window was not superseded by the order that hastened it."""
    records = [
        *(record(event, number) for number, event in enumerate(ROTATION[:2])),
        ordered(Order.ROTATE, 10, "o"),
        record(Event.RESTART_ASKED, 11, run="o"),
        record(Event.LAUNCHED, 12),
        record(Event.RESTARTED, 13, run="o"),
    ]
    assert [each.outcome for each in tell(records[:2]).rotations] == [RotationOutcome.SEALED]
    assert [each.outcome for each in tell(records[:3]).rotations] == [
        RotationOutcome.SEALED,
        RotationOutcome.ORDERED,
    ]
    assert [each.outcome for each in tell(records).rotations] == [
        RotationOutcome.STARTED,
        RotationOutcome.RESTARTED,
    ]


def test_orders_that_restart_nothing() -> None:
    """To hold a VM, or to release it, is a fact beside the stories; a dropped order is told in its own."""
    records = [
        ordered(Order.HOLD, 0, "h"),
        record(Event.HELD, 0, run="h"),
        ordered(Order.ROTATE, 1, "o"),
        record(Event.ORDER_DROPPED, 2, run="o"),
    ]
    story = tell(records)
    assert [each.event for each in story.facts] == [Event.ORDERED, Event.HELD]
    assert [each.outcome for each in story.rotations] == [RotationOutcome.DROPPED]
    assert story.rotations[0].is_bad


def test_what_comes_after_a_rotation() -> None:
    """A later start with the same generation is told of beside the rotation, and makes it no longer."""
    records = [*rotation("a", 0, 1, "1"), record(Event.GUEST_REBOOT, 100), record(Event.LAUNCHED, 101)]
    (story,) = tell(records).rotations
    assert (story.outcome, story.seconds) == (RotationOutcome.RESTARTED, 4)
    assert [step.label for step in story.later] == ["guest reboot", "launched"]


def test_a_launch_that_is_told_late() -> None:
    """The agent may read the stamp before the launcher's word is in the journal: it is the same launch."""
    order = (*ROTATION[:3], Event.RESTARTED, Event.LAUNCHED)
    (story,) = tell([record(event, number / 10) for number, event in enumerate(order)]).rotations
    assert [step.label for step in story.steps][-2:] == ["restarted", "launched"]
    assert (story.outcome, story.later) == (RotationOutcome.RESTARTED, [])


@pytest.mark.parametrize("failed", [Event.RESTART_FAILED, Event.PUSH_FAILED])
@pytest.mark.parametrize("end", [Event.ROLLED_BACK, Event.ROLLBACK_FAILED])
@pytest.mark.parametrize("is_ordered", [False, True])
def test_a_rollback_s_launch_that_is_told_late(failed: Event, end: Event, *, is_ordered: bool) -> None:
    """A rollback's launch belongs to the story of the failure, whether its record or the agent's is first.

    A launch of the same generation after that one is a later start.
    """
    asked = Event.PUSH_ASKED if failed is Event.PUSH_FAILED else Event.RESTART_ASKED
    run = "o" if is_ordered else "b"
    bad = [asked, Event.LAUNCHED, failed] if failed is Event.RESTART_FAILED else [asked, failed]
    before = [
        *rotation("a", 0, 1, "1"),
        *(record(event, 10, run="b", generation=2, value="2") for event in ROTATION[:2]),
        *([ordered(Order.ROTATE, 11, "o")] if is_ordered else []),
        *(
            record(event, 12 + n, run="b" if event is Event.LAUNCHED else run, generation=2)
            for n, event in enumerate(bad)
        ),
    ]
    launch, back = Event.LAUNCHED, end
    for order in ((launch, back), (back, launch)):
        records = [
            *before,
            *(
                record(event, 20 + n / 10, run=run if event is end and is_ordered else "a")
                for n, event in enumerate(order)
            ),
            record(Event.LAUNCHED, 23, run="a"),
        ]
        first, *_, last = tell(records).rotations
        *_, one, other = [step.label for step in last.steps]
        assert {one, other} == {launch.label, back.label}
        assert [step.time for step in first.later] == [at(23)]
        assert [step.label for step in last.steps].count(launch.label) == 1 + bad.count(launch)
        outcomes = {
            Event.ROLLED_BACK: RotationOutcome.ROLLED_BACK,
            Event.ROLLBACK_FAILED: RotationOutcome.DOWN,
        }
        assert (first.outcome, last.outcome) == (RotationOutcome.RESTARTED, outcomes[end])


def test_a_rollback_s_launch_is_no_start_with_the_failed_values() -> None:
    """A rollback's launch, after a push that failed, does not make the rotation count as started."""
    failed = [*ROTATION[:2], Event.PUSH_ASKED, Event.PUSH_FAILED]
    records = [
        *rotation("a", 0, 1, "1"),
        *(record(event, 10 + number, run="b", generation=2) for number, event in enumerate(failed)),
        record(Event.LAUNCHED, 20, run="a"),
    ]
    assert [each.outcome for each in tell(records).rotations] == [
        RotationOutcome.RESTARTED,
        RotationOutcome.FAILED,
    ]


def test_what_belongs_to_no_rotation() -> None:
    """What has no run is a fact of its own; that a restart waits belongs to what it waits for."""
    records = [
        record(Event.REFUSED, 0),
        *(record(event, 1) for event in ROTATION[:2]),
        record(Event.WAITING, 2),
        record(Event.HELD, 3),
    ]
    story = tell(records)
    assert [fact.event for fact in story.facts] == [Event.REFUSED, Event.HELD]
    assert story.rotations[0].steps[-1].label == "waiting"
    later = tell([*records, *rotation("b", 10, 2, "2")])
    assert [each.outcome for each in later.rotations] == [
        RotationOutcome.SUPERSEDED,
        RotationOutcome.RESTARTED,
    ]


def test_within() -> None:
    """A rotation is within a span as soon as any of it is."""
    (story,) = tell(rotation("a", 0, 1, "1")).rotations
    begin = BEGIN.timestamp()
    for since, until, expected in (
        (None, None, True),
        (begin + 4, None, True),
        (begin + 4.1, None, False),
        (None, begin, True),
        (None, begin - 0.1, False),
        (begin + 1, begin + 2, True),
    ):
        assert within(story, since, until) is expected


def unit_record(event: UnitEvent, seconds: float, invocation: str) -> UnitRecord:
    """What PID 1 says of the VM's unit."""
    return UnitRecord(at(seconds), event, "microvm@web.service", invocation)


PAST = (*rotation("a", 0, 1, "1"), *rotation("b", 100, 2, "2"))


@pytest.mark.parametrize(
    ("units", "end", "by"),
    [
        ((), 103, "started anew"),
        ((unit_record(UnitEvent.SUCCEEDED, 102, "a1"),), 102, "stopped"),
        ((unit_record(UnitEvent.FAILED, 50, "a1"),), 50, "failed"),
        ((unit_record(UnitEvent.FAILED, 50, "another"),), 103, "started anew"),
        ((unit_record(UnitEvent.FAILED, 1, "a1"),), 103, "started anew"),
    ],
)
def test_when_a_period_ends(units: tuple[UnitRecord, ...], end: float, by: str) -> None:
    """By PID 1's word about that very invocation; without one, by the VM's next start."""
    first, second = periods(History(PAST, units))
    assert (first.begin, first.end, first.ended_by) == (at(3), at(end), by)
    assert (second.begin, second.end, second.ended_by) == (at(103), None, "")
    assert (first.fingerprints, second.fingerprints) == ({"KEY": "1"}, {"KEY": "2"})


def test_a_reboot_ends_a_period() -> None:
    """Where the guest rebooted, that is why the unit ended."""
    past = (*PAST[:5], record(Event.GUEST_REBOOT, 50), *PAST[5:])
    units = (unit_record(UnitEvent.SUCCEEDED, 51, "a1"),)
    assert periods(History(past, units))[0].ended_by == "the guest rebooted"


def test_a_guest_that_says_when_it_is_ready() -> None:
    """Started after its launch, a unit waited for the guest's word; started before, it did not."""
    for seconds, is_ready in ((3.5, True), (2.5, False)):
        history = History(PAST[:5], (unit_record(UnitEvent.STARTED, seconds, "a1"),))
        (period,) = periods(history)
        assert period.ready == (at(seconds) if is_ready else None)
        (story,) = tell(history.records, [period]).rotations
        assert [step.label for step in story.steps][3:] == [
            "launched",
            *["guest ready"] * is_ready,
            "restarted",
        ]


def test_a_sealing_that_the_journal_has_forgotten() -> None:
    """What a VM ran is then unknown; a generation of the same number and another run is not taken for it."""
    (period,) = periods(History(PAST[2:5]))
    assert period.fingerprints == {"KEY": ""}
    other = record(Event.SEALED, 0, run="other")
    assert periods(History((other, *PAST[2:5])))[0].fingerprints == {"KEY": ""}
