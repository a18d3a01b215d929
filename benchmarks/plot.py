# SPDX-License-Identifier: MIT
"""Line charts as SVG, both axes logarithmic: medians, with a whisker up to the ninetieth percentile."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_WIDTH, _HEIGHT = 720, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 190, 40, 50
# Told apart without colours, too, by their marks; readable on white and on black.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a8a8a", "#e69f00")
_STYLE = "text{font:13px sans-serif;fill:#555}.t{font-weight:bold}.g{stroke:#9995;stroke-width:1}"


@dataclass(frozen=True, slots=True)
class Point:
    """A median, and the percentile above it."""

    at: float
    p50: float
    p90: float


@dataclass(frozen=True, slots=True)
class _Axis:
    """Powers of ten from ``low`` to ``high``, onto pixels."""

    low: int
    high: int
    start: float
    end: float

    @classmethod
    def over(cls, values: Iterable[float], start: float, end: float) -> _Axis:
        known = [log10(value) for value in values if value > 0]
        low, high = floor(min(known)), ceil(max(known))
        return cls(low, max(high, low + 1), start, end)

    def place(self, value: float) -> float:
        part = (log10(value) - self.low) / (self.high - self.low)
        return self.start + (self.end - self.start) * part

    @property
    def ticks(self) -> list[float]:
        return [10.0**power for power in range(self.low, self.high + 1)]


def chart(title: str, across: str, up: str, series: Mapping[str, Sequence[Point]]) -> str:
    """One chart. Series without a point are left out."""
    shown = {name: points for name, points in series.items() if points}
    every = [point for points in shown.values() for point in points]
    x = _Axis.over((point.at for point in every), _LEFT, _WIDTH - _RIGHT)
    y = _Axis.over((v for point in every for v in (point.p50, point.p90)), _HEIGHT - _BOTTOM, _TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style>",
        _text(_LEFT, 22, title, "t"),
        _text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 10, across, anchor="middle"),
        f'<g transform="translate(16,{(_TOP + _HEIGHT - _BOTTOM) / 2}) rotate(-90)">',
        _text(0, 0, up, anchor="middle") + "</g>",
    ]
    for tick in x.ticks:
        at = x.place(tick)
        parts += [_line(at, _TOP, at, _HEIGHT - _BOTTOM)]
        parts += [_text(at, _HEIGHT - _BOTTOM + 18, f"{tick:,g}", anchor="middle")]
    for tick in y.ticks:
        at = y.place(tick)
        parts += [
            _line(_LEFT, at, _WIDTH - _RIGHT, at),
            _text(_LEFT - 8, at + 4, f"{tick:,g}", anchor="end"),
        ]
    for number, (name, points) in enumerate(shown.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        places = [(x.place(point.at), y.place(point.p50), y.place(point.p90)) for point in points]
        path = " ".join(f"{across_:.1f},{up_:.1f}" for across_, up_, _ in places)
        parts.append(f'<g stroke="{colour}" fill="none" stroke-width="2"><polyline points="{path}"/>')
        parts += [_whisker(*each) + _mark(number, each[0], each[1]) for each in places]
        parts.append("</g>")
        at = _TOP + 10 + 22 * number
        mark = _mark(number, _WIDTH - _RIGHT + 20, at)
        parts.append(f'<g stroke="{colour}" fill="none" stroke-width="2">{mark}</g>')
        parts.append(_text(_WIDTH - _RIGHT + 34, at + 4, name))
    return "\n".join([*parts, "</svg>\n"])


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="g" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _whisker(x: float, low: float, high: float) -> str:
    return f'<path d="M{x:.1f},{low:.1f}V{high:.1f}m-4,0h8"/>'


def _mark(number: int, x: float, y: float) -> str:
    if number % 3 == 0:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
    if number % 3 == 1:
        return f'<rect x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8"/>'
    return f'<path d="M{x:.1f},{y - 5:.1f}l5,9h-10z"/>'
