# SPDX-License-Identifier: MIT
"""The audit as one page of HTML: a timeline per VM, and the stories below. Pure.

The page has no script and refers to nothing outside itself. Its policy makes the browser block both. Every
text from the journal is escaped and has no control characters, because a VM's unit may send any text.

One job: the page. Its style, its drawing and its lists stand together, as they share names and measures.
"""

from __future__ import annotations

import base64
import hashlib
from datetime import UTC, datetime, timedelta
from html import escape
from typing import TYPE_CHECKING, NamedTuple

from credferry.agent.audit.events import Event
from credferry.agent.audit.rotations import Rotation, describe_revert
from credferry.agent.printable import printable_lines

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from credferry.agent.audit.periods import Period
    from credferry.agent.audit.records import Record
    from credferry.agent.audit.rotations import Story

_SHORT = 8
_HUES = 8
_WIDTH, _LEFT, _RIGHT = 1000.0, 170.0, 12.0
_LANE, _BAR = 26.0, 18.0
_LETTER = 6.2
"""Minimum width of a letter of a bar's text. A bar that is too narrow for its text has none."""
_TICKS_MAX = 7
_MINUTE, _DAY = 60, 86_400
_STEPS = (
    *(1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200),
    *(_DAY * days for days in (1, 2, 7, 14, 30, 90, 180, 365, 730, 1825, 3650)),
)
"""Seconds between ticks of a time axis."""

_STYLE = """
:root { color-scheme: light dark; --page: #f5f6f8; --card: #fff; --ink: #1c2126; --dim: #5c6670;
  --line: #d9dee3; --bad: #c22f3d; --good: #1f8a4c; --warn: #b06f00; --bar: 46%; --text: #fff; }
@media (prefers-color-scheme: dark) { :root { --page: #14171b; --card: #1d2126; --ink: #e4e8ec;
  --dim: #98a2ac; --line: #353b42; --bad: #ff7b86; --good: #5fd08d; --warn: #f0b54c; --bar: 66%;
  --text: #14171b; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem; max-width: 76rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; }
html { background: var(--page); }
h1 { font-size: 1.4rem; margin: 0; } h2 { font-size: 1.05rem; margin: 0 0 .4rem; }
section, details { background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
section { padding: .9rem 1rem; margin: 1rem 0; }
details { padding: .35rem .8rem; margin: .4rem 0; }
summary { cursor: pointer; } summary time { color: var(--dim); font-variant-numeric: tabular-nums; }
.dim { color: var(--dim); } .bad { color: var(--bad); } .good { color: var(--good); }
.note { color: var(--warn); }
code, .mono { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: .88em; }
table { border-collapse: collapse; margin: .4rem 0; }
td { padding: .1rem .9rem .1rem 0; vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
svg { display: block; width: 100%; height: auto; }
svg text { font: 11px system-ui, "DejaVu Sans", sans-serif; fill: var(--dim); }
svg text.name { fill: var(--ink); font-size: 12px; }
svg text.print { font-family: ui-monospace, "DejaVu Sans Mono", monospace; fill: var(--text);
  font-size: 10px; }
svg line { stroke: var(--line); } svg line.back { stroke: var(--dim); stroke-dasharray: 2 3; }
svg .mark-good { fill: var(--good); } svg .mark-bad { fill: var(--bad); }
svg .mark-note { fill: var(--warn); }
svg .open { opacity: .85; }
.f0 { fill: hsl(212 62% var(--bar)); } .f1 { fill: hsl(28 78% var(--bar)); }
.f2 { fill: hsl(162 58% calc(var(--bar) - 10%)); } .f3 { fill: hsl(268 46% var(--bar)); }
.f4 { fill: hsl(340 58% var(--bar)); } .f5 { fill: hsl(190 66% calc(var(--bar) - 8%)); }
.f6 { fill: hsl(48 72% calc(var(--bar) - 8%)); } .f7 { fill: hsl(100 38% calc(var(--bar) - 6%)); }
.unknown { fill: var(--line); }
"""
_LEGEND = (
    '<p class="dim"><span class="good">●</span> restarted with a new value, <span '
    'class="bad">▲</span> failed or rolled back, <span class="note">◆</span> published, held, or '
    "waiting</p>"
)
_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_POLICY = f"default-src 'none'; style-src 'sha256-{_HASH}'; base-uri 'none'; form-action 'none'"


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
        f"{_count(len(story.rotations), 'rotation')}, {bad} of them failed or rolled back. Each colour "
        "is one value: a colour that appears again is a value that was used again."
    )
    lines = [
        "<!doctype html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="viewport" content="width=device-width">',
        '<meta name="referrer" content="no-referrer">',
        "<title>credferry: audit</title>",
        f"<style>{_STYLE}</style>",
        "</head>",
        "<body>",
        "<h1>Which VM ran which secrets</h1>",
        f'<p class="dim">{escape(summary)}</p>',
        _LEGEND,
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
    hues: dict[str, int] = {}
    for period in periods:
        if name not in period.fingerprints:
            continue
        fingerprint = period.fingerprints[name]
        hue = f"f{hues.setdefault(fingerprint, len(hues) % _HUES)}" if fingerprint else "unknown"
        end = period.end or scale.end
        if end < scale.begin or period.begin > scale.end:
            continue
        x, width = scale.x(period.begin), max(1.5, scale.x(end) - scale.x(period.begin))
        shown = fingerprint[:_SHORT] or "unknown"
        said = f"{name} {shown}, generation {period.generation}: {_at(period.begin)} to "
        said += f"{_at(period.end)}, {period.ended_by}" if period.end else "now"
        yield (
            f'<rect class="{hue}{"" if period.end else " open"}" x="{x:.1f}" y="{top:.1f}" '
            f'width="{width:.1f}" height="{_BAR:.0f}" rx="3"><title>{escape(said)}</title></rect>'
        )
        if width > len(shown) * _LETTER + 6:
            yield f'<text class="print" x="{x + 4:.1f}" y="{top + 12.5:.1f}">{escape(shown)}</text>'


_MARKS = {
    Event.RESTARTED.label: "good",
    Event.RESTART_FAILED.label: "bad",
    Event.ROLLED_BACK.label: "bad",
    Event.ROLLBACK_FAILED.label: "bad",
    Event.LAUNCH_REFUSED.label: "bad",
    Event.HALTED.label: "note",
    Event.WAITING.label: "note",
    Event.GUEST_REBOOT.label: "note",
    Event.PUBLISHED.label: "note",
    Event.ORDERED.label: "note",
    Event.ORDER_DROPPED.label: "bad",
}


def _marks(
    top: float, rotations: Sequence[Rotation], facts: Sequence[Record], scale: _Scale
) -> Iterator[str]:
    yield f'<text class="name" x="0" y="{top + 14:.1f}">events</text>'
    steps = [(step.time, step.label, step.text) for each in rotations for step in (*each.steps, *each.later)]
    steps += [(fact.time, fact.event.label, fact.message) for fact in facts]
    for time, label, text in sorted(steps):
        kind = _MARKS.get(label, "note" if label in {fact.event.label for fact in facts} else "")
        if not kind or not scale.begin <= time <= scale.end:
            continue
        x, y = scale.x(time), top + _BAR / 2
        # Shapes as well as colours, for readers who cannot tell the colours apart.
        shape = {
            "good": f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" class="mark-good">',
            "bad": f'<path d="M{x:.1f} {y - 6:.1f}l6 11h-12z" class="mark-bad">',
            "note": f'<path d="M{x:.1f} {y - 5:.1f}l5 5l-5 5l-5 -5z" class="mark-note">',
        }[kind]
        end = "</circle>" if kind == "good" else "</path>"
        yield f"{shape}<title>{escape(f'{_at(time)} {label}: {text}')}</title>{end}"


def _stories(story: Story) -> Iterator[str]:
    yield "<h2>Stories</h2>"
    parts: list[tuple[datetime, Rotation | Record]] = [
        *((each.began, each) for each in story.rotations),
        *((each.time, each) for each in story.facts),
    ]
    for _, part in sorted(parts, key=lambda each: each[0]):
        if isinstance(part, Rotation):
            yield from _rotation(part)
        else:
            yield f'<p class="dim"><time>{_at(part.time)}</time> {escape(part.message)}</p>'


def _rotation(rotation: Rotation) -> Iterator[str]:
    colour = "bad" if rotation.is_bad else "good"
    generation = f", generation {rotation.generation}" if rotation.generation else ""
    yield (
        f'<details class="rotation" data-run="{escape(rotation.run)}" data-vm="{escape(rotation.vm)}">'
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
