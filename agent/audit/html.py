# SPDX-License-Identifier: MIT
"""The audit as one page of HTML: a timeline per VM, and the stories below. Pure.

The page has no script and refers to nothing outside itself. Its policy makes the browser block both. Every
text from the journal is escaped and has no control characters, because a VM's unit may send any text.

One job: the page. Its style, its drawing and its lists stand together, as they share names and measures.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from html import escape
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from credferry.agent.audit.events import Event
from credferry.agent.audit.html_style import POLICY, STYLE, looks
from credferry.agent.audit.rotations import Rotation, describe_revert
from credferry.agent.printable import printable_lines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from credferry.agent.audit.periods import Period
    from credferry.agent.audit.records import Record
    from credferry.agent.audit.rotations import Story

_SHORT = 8
_WIDTH, _LEFT, _RIGHT = 1000.0, 170.0, 12.0
_LANE, _BAR = 26.0, 18.0
_NARROW = 6.0
"""A narrower bar, or a mark that is closer to the one before, is drawn together with its neighbours."""
_FULL_MAX = 400
"""With more rotations than this, those that went well are one line each, without their steps."""
_CROWD, _INDEXED = 60, 3
"""With more marks than this in a timeline, close ones are drawn as one; with more VMs, there is an index."""
_T = TypeVar("_T")
_LETTER = 6.2
"""Minimum width of a letter of a bar's text. A bar that is too narrow for its text has none."""
_TICKS_MAX = 7
_MINUTE, _DAY = 60, 86_400
_STEPS = (
    *(1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200),
    *(_DAY * days for days in (1, 2, 7, 14, 30, 90, 180, 365, 730, 1825, 3650)),
)
"""Seconds between ticks of a time axis."""

_LEGEND = (
    '<p class="dim"><span class="good">●</span> restarted with a new value or has it by a push, <span '
    'class="bad">▲</span> failed or rolled back, <span class="note">◆</span> published, held, or '
    "waiting. In a timeline, a colour with its border is one value of a credential, which its fingerprint "
    "chooses: it appears again where the value was used again. A grey bar is several values "
    "that are too close to be drawn one by one, and leads to their story.</p>"
)


class _Scale(NamedTuple):
    """The period that a page shows, and the x coordinate of each moment."""

    begin: datetime
    end: datetime

    def x(self, time: datetime) -> float:
        part = (time - self.begin) / (self.end - self.begin)
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * min(1.0, max(0.0, part))


def page(
    story: Story, periods: Sequence[Period], *, since: float | None = None, until: float | None = None
) -> str:
    """The whole page. Without bounds it covers all known moments, from the first to the last."""
    scale = _scale(story, periods, since, until)
    vms = sorted({each.vm for each in periods} | {each.vm for each in story.rotations})
    bad = sum(each.is_bad for each in story.rotations)
    summary = (
        f"{_at(scale.begin)} to {_at(scale.end)} UTC: {_count(len(vms), 'VM')}, "
        f"{_count(len(story.rotations), 'rotation')}, {bad} of them failed or rolled back."
    )
    lines = [
        "<!doctype html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name="viewport" content="width=device-width">',
        '<meta name="referrer" content="no-referrer">',
        "<title>credferry: audit</title>",
        f"<style>{STYLE}</style>",
        "</head>",
        "<body>",
        "<h1>Which VM ran which secrets</h1>",
        f'<p class="dim">{escape(summary)}</p>',
        _LEGEND,
        *_index(vms, story),
        *(line for vm in vms for line in _vm(vm, story, periods, scale)),
        *_stories(story),
        "</body>",
        "</html>",
    ]
    return printable_lines("\n".join(lines)) + "\n"


def _scale(story: Story, periods: Sequence[Period], since: float | None, until: float | None) -> _Scale:
    times = [each.began for each in story.rotations] + [each.begin for each in periods]
    ends = [each.ended for each in story.rotations] + [each.end or each.begin for each in periods]
    times += [each.time for each in story.facts]
    begin = (
        datetime.fromtimestamp(since, UTC) if since is not None else min(times, default=datetime.now(UTC))
    )
    end = datetime.fromtimestamp(until, UTC) if until is not None else max([*ends, *times], default=begin)
    # Extra time at the end, so that the bar of a VM that has just started is visible.
    end += max((end - begin) * 0.03, timedelta(seconds=1)) if until is None else timedelta()
    return _Scale(begin, max(end, begin + timedelta(seconds=1)))


def _vm(vm: str, story: Story, periods: Sequence[Period], scale: _Scale) -> Iterator[str]:
    own = [each for each in periods if each.vm == vm]
    rotations = [each for each in story.rotations if each.vm == vm]
    names = sorted(
        {name for each in own for name in each.fingerprints} | {n for r in rotations for n in r.changed}
    )
    height = 24 + _LANE * (len(names) + 1)
    yield f'<section id="vm-{escape(vm)}"><h2>{escape(vm)}</h2>'
    yield (
        f'<svg viewBox="0 0 {_WIDTH:.0f} {height:.0f}" role="img" '
        f'aria-label="What {escape(vm)} ran, and when it was restarted">'
    )
    yield from _axis(scale, height)
    for lane, name in enumerate(names):
        yield from _lane(name, 24 + lane * _LANE, own, scale)
    yield from _marks(24 + len(names) * _LANE, rotations, [f for f in story.facts if f.vm == vm], scale)
    yield "</svg></section>"


def _axis(scale: _Scale, height: float) -> Iterator[str]:
    span = (scale.end - scale.begin).total_seconds()
    step = next((each for each in _STEPS if span / each <= _TICKS_MAX), _STEPS[-1])
    first = -(-scale.begin.timestamp() // step) * step
    if step < _MINUTE:
        form = "%H:%M:%S"
    elif step < _DAY:
        form = "%H:%M" if span < _DAY else "%m-%d %H:%M"
    else:
        form = "%Y-%m-%d"
    for number in range(int((scale.end.timestamp() - first) // step) + 1):
        time = datetime.fromtimestamp(first + number * step, UTC)
        x = scale.x(time)
        yield f'<line x1="{x:.1f}" y1="16" x2="{x:.1f}" y2="{height:.0f}"/>'
        yield f'<text x="{x:.1f}" y="11" text-anchor="middle">{time.strftime(form)}</text>'


def _lane(name: str, top: float, periods: Sequence[Period], scale: _Scale) -> Iterator[str]:
    yield (
        f'<text class="name" x="0" y="{top + 14:.1f}">{_shortened(name, 24)}'
        f"<title>{escape(name)}</title></text>"
    )
    own = [each for each in periods if name in each.fingerprints]
    look = looks(each.fingerprints[name] for each in own if each.fingerprints[name])
    shown = [each for each in own if (each.end or scale.end) >= scale.begin and each.begin <= scale.end]
    for group in _clusters(
        shown, lambda each: scale.x(each.begin), lambda each: scale.x(each.end or scale.end)
    ):
        x, end = scale.x(group[0].begin), scale.x(group[-1].end or scale.end)
        place = f'x="{x:.1f}" y="{top:.0f}" width="{max(1.5, end - x):.1f}" height="{_BAR:.0f}"'
        if len(group) > 1:
            said = f"{len(group)} starts: {_at(group[0].begin)} to {_at(group[-1].begin)}"
            bar = f'<rect class="many" {place}><title>{said}</title></rect>'
            yield f'<a href="#run-{escape(group[0].run[:_SHORT])}">{bar}</a>'
            continue
        period = group[0]
        fingerprint = period.fingerprints[name]
        label = fingerprint[:_SHORT] or "unknown"
        until = f"{_at(period.end)}, {period.ended_by}" if period.end else "now"
        said = f"{name} {label}, generation {period.generation}: {_at(period.begin)} to {until}"
        kind = f"{look.get(fingerprint, 'unknown')}{'' if period.end else ' open'}"
        yield f'<rect class="{kind}" {place} rx="3"><title>{escape(said)}</title></rect>'
        if end - x > len(label) * _LETTER + 6:
            yield f'<text class="print" x="{x + 4:.1f}" y="{top + 12.5:.1f}">{escape(label)}</text>'


def _clusters(
    items: Sequence[_T], left: Callable[[_T], float], right: Callable[[_T], float]
) -> Iterator[list[_T]]:
    """Items in their order: those that are narrow and close together as one, each other by itself."""
    group: list[_T] = []
    for item in items:
        is_narrow = right(item) - left(item) < _NARROW
        if group and not (is_narrow and left(item) - left(group[0]) < 2 * _NARROW):
            yield group
            group = []
        group.append(item)
        if not is_narrow:
            yield group
            group = []
    if group:
        yield group


_MARKS = {
    Event.RESTARTED.label: "good",
    Event.RESTART_FAILED.label: "bad",
    Event.PUSHED.label: "good",
    Event.PUSH_FAILED.label: "bad",
    Event.ROLLED_BACK.label: "bad",
    Event.ROLLBACK_FAILED.label: "bad",
    Event.LAUNCH_REFUSED.label: "bad",
    Event.HALTED.label: "note",
    Event.WAITING.label: "note",
    Event.GUEST_REBOOT.label: "note",
    Event.PUBLISHED.label: "note",
    Event.ORDERED.label: "note",
    Event.FLEET_ORDERED.label: "note",
    Event.ORDER_DROPPED.label: "bad",
}


def _marks(
    top: float, rotations: Sequence[Rotation], facts: Sequence[Record], scale: _Scale
) -> Iterator[str]:
    yield f'<text class="name" x="0" y="{top + 14:.1f}">events</text>'
    steps = [(step.time, step.label, step.text) for each in rotations for step in (*each.steps, *each.later)]
    steps += [(fact.time, fact.event.label, fact.message) for fact in facts]
    facts_are = {fact.event.label for fact in facts}
    drawn = [
        (time, kind, f"{_at(time)} {label}: {text}")
        for time, label, text in sorted(steps)
        if (kind := _MARKS.get(label, "note" if label in facts_are else ""))
        and scale.begin <= time <= scale.end
    ]

    def place(each: tuple[datetime, str, str]) -> float:
        return scale.x(each[0])

    is_crowded = len(drawn) > _CROWD
    for group in _clusters(drawn, place, place) if is_crowded else ([each] for each in drawn):
        time, kind, said = next((each for each in group if each[1] == "bad"), group[-1])
        if len(group) > 1:
            said += f"; and {len(group) - 1} more"
        x, y = scale.x(time), top + _BAR / 2
        # Shapes as well as colours, for readers who cannot tell the colours apart.
        shape = {
            "good": f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" class="mark-good">',
            "bad": f'<path d="M{x:.1f} {y - 6:.1f}l6 11h-12z" class="mark-bad">',
            "note": f'<path d="M{x:.1f} {y - 5:.1f}l5 5l-5 5l-5 -5z" class="mark-note">',
        }[kind]
        end = "</circle>" if kind == "good" else "</path>"
        yield f"{shape}<title>{escape(said)}</title>{end}"


def _index(vms: Sequence[str], story: Story) -> Iterator[str]:
    """Links to the VMs, if there are many, and the filter. A link shows one VM's timeline alone."""
    bad = {each.vm for each in story.rotations if each.is_bad}
    if len(vms) > _INDEXED:
        yield '<nav><a href="#">all VMs</a>'
        for vm in vms:
            kind = ' class="bad"' if vm in bad else ""
            yield f'<a{kind} href="#vm-{escape(vm)}">{escape(vm)}</a>'
        yield "</nav>"
    if bad:
        yield (
            '<label class="filter"><input type="checkbox" id="only-bad"> show only the stories of what '
            "failed or was rolled back</label>"
        )


def _stories(story: Story) -> Iterator[str]:
    yield "<h2>Stories</h2>"
    parts: list[tuple[datetime, Rotation | Record]] = [
        *((each.began, each) for each in story.rotations),
        *((each.time, each) for each in story.facts),
    ]
    parts.sort(key=lambda each: each[0])
    if len(story.rotations) > _FULL_MAX:
        yield from _groups([part for _, part in parts])
        return
    for _, part in parts:
        if isinstance(part, Rotation):
            yield from _rotation(part)
        else:
            yield f'<p class="dim fine"><time>{_at(part.time)}</time> {escape(part.message)}</p>'


def _groups(parts: Sequence[Rotation | Record]) -> Iterator[str]:
    """The stories by their run: a line for each VM that went well, all steps of one that did not."""
    for run, group in groupby(parts, key=lambda part: part.run):
        rotations: list[Rotation] = []
        for part in group:
            if isinstance(part, Rotation):
                rotations.append(part)
            else:
                yield f'<p class="dim fine"><time>{_at(part.time)}</time> {escape(part.message)}</p>'
        if not rotations:
            continue
        bad = [each for each in rotations if each.is_bad]
        said = f'<span class="bad">{len(bad)} failed</span>' if bad else '<span class="good">well</span>'
        yield (
            f"<details{'' if bad else ' class=fine'}><summary><time>{_at(rotations[0].began)}</time> run "
            f"{escape(run[:_SHORT])}: {_count(len(rotations), 'VM')}, {said}</summary><table "
            f'id="run-{escape(run[:_SHORT])}">'
        )
        for each in rotations:
            if not each.is_bad:
                yield _line_of(each)
        yield "</table>"
        for each in bad:
            yield from _rotation(each)
        yield "</details>"


def _line_of(rotation: Rotation) -> str:
    changed = ", ".join(f"{name} {value[:_SHORT]}" for name, value in rotation.changed.items())
    return (
        f"<tr><td>{escape(rotation.vm)}<td>{rotation.generation or ''}<td>{rotation.outcome.value}"
        f"<td>{rotation.seconds:.1f} s<td>{escape(changed)}"
    )


def _rotation(rotation: Rotation) -> Iterator[str]:
    colour = "bad" if rotation.is_bad else "good"
    generation = f", generation {rotation.generation}" if rotation.generation else ""
    yield (
        f'<details class="rotation{"" if rotation.is_bad else " fine"}" data-run="{escape(rotation.run)}" '
        f'data-vm="{escape(rotation.vm)}">'
        f"<summary><time>{_at(rotation.began)}</time> <b>{escape(rotation.vm)}</b>{generation}: "
        f'<span class="{colour}">{rotation.outcome.value}</span> after {rotation.seconds:.2f} s</summary>'
    )
    for name, fingerprint in rotation.changed.items():
        note = describe_revert(rotation.reverted, name)
        said = f' <span class="revert">{escape(note)}</span>' if note else ""
        yield f"<div>{escape(name)} <code>{escape(fingerprint[:_SHORT])}</code>{said}</div>"
    yield "<table>"
    for step in (*rotation.steps, *rotation.later):
        offset = (step.time - rotation.began).total_seconds()
        yield (
            f'<tr><td class="number">{offset:+.3f} s</td><td>{escape(step.label)}</td>'
            f"<td>{escape(step.text)}</td></tr>"
        )
    yield f'</table><div class="dim mono">run {escape(rotation.run)}</div></details>'


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _shortened(text: str, length: int) -> str:
    return escape(text if len(text) <= length else text[: length - 1] + "…")


def _at(time: datetime) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")
