# SPDX-License-Identifier: MIT
"""docs/performance.md: tables and plots of the last run, between two marks; the rest is written by hand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import accepted, growth, launch
from benchmarks.exponents import exponents
from benchmarks.plot import Point, chart
from benchmarks.targets import targets
from credferry.launcher.handoff import Channel

if TYPE_CHECKING:
    from collections.abc import Iterable

    from benchmarks.results import Results, Row

PAGE = Path(__file__).resolve().parents[1] / "docs/performance.md"
PLOTS = PAGE.with_suffix("")
BEGIN, END = "<!-- results -->", "<!-- end of results -->"


def write(results: Results) -> None:
    """Put the results of a run into the page, and its plots beside it."""
    PLOTS.mkdir(exist_ok=True)
    for name, drawing in plots(results).items():
        (PLOTS / f"{name}.svg").write_text(drawing, encoding="utf-8")
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{render(results)}\n{END}{after}", encoding="utf-8")


def render(results: Results) -> str:
    """Everything between the marks."""
    about = ", ".join(f"{name} {value}" for name, value in results.machine.items())
    parts = [f"On: {about}.\n", "### Targets\n", _targets(results)]
    parts += ["### Growth with secrets and VMs\n", _growth(results)]
    measures = list(dict.fromkeys(each.measure for each in results.rows))
    for measure in measures:
        parts += [f"### {measure[:1].upper()}{measure[1:]}\n", _table(results.of(measure))]
        name = {accepted.ONE: "accepted", growth.TIME: "look"}.get(measure)
        name = "launch" if measure == launch.measure_name(Channel.API) else name
        if name in plots(results):
            parts.append(f"![{measure}](performance/{name}.svg)\n")
    return "\n".join(parts)


def _growth(results: Results) -> str:
    lines = ["| | cases | exponent over all | of the last tenfold |", "|---|---:|---:|---:|"]
    lines += [
        f"| {each.measure} | {each.cases} | {_number(each.fit)} | {_number(each.last)} |"
        for each in exponents(results)
    ]
    return "\n".join(lines) + "\n"


def _targets(results: Results) -> str:
    lines = ["| target | measured | bound | |", "|---|---:|---:|---|"]
    for each in targets(results):
        met = "met" if each.is_met else "**not met**"
        lines.append(f"| {each.what} | {_number(each.value)} {each.unit} | {each} | {met} |")
    return "\n".join(lines) + "\n"


def _table(rows: list[Row]) -> str:
    unit = rows[0].unit
    if all(each.seen is None or each.seen.count <= 2 for each in rows):
        lines = [f"| | | {unit or 'number'} |", "|---|---|---:|"]
        lines += [f"| {each.case} | {each.contender} | {_number(each.middle)} |" for each in rows]
        return "\n".join(lines) + "\n"
    lines = [
        f"| | | p50, {unit} | p90 | p99 | max | runs | A / A | |",
        "|---|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for each in rows:
        seen = each.seen
        figures = (seen.p50, seen.p90, seen.p99, seen.largest) if seen else (float("nan"),) * 4
        noise = (
            f"{max(each.rounds) / min(each.rounds):.2f}"
            if len(each.rounds) > 1 and min(each.rounds) > 0
            else ""
        )
        counts = ", ".join(f"{count} {name}" for name, count in each.counts.items())
        numbers = " | ".join(_number(figure) for figure in figures)
        runs = seen.count if seen else 0
        lines.append(f"| {each.case} | {each.contender} | {numbers} | {runs} | {noise} | {counts} |")
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    if value != value:  # noqa: PLR0124 (not a number)
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def plots(results: Results) -> dict[str, str]:
    """SVG by name."""
    grown = [each for each in results.of(accepted.ONE) if _is_along(each)]
    looks = [each for each in results.of(growth.TIME) if " of 32 bytes" in each.case]
    starts = results.of(launch.measure_name(Channel.API))
    drawn = {
        "accepted": (accepted.ONE, "secrets, a tenth as many VMs", grown),
        "look": (
            growth.TIME,
            "secrets of 32 bytes, a tenth as many VMs",
            [e for e in looks if _is_along(e)],
        ),
        "launch": (launch.measure_name(Channel.API), "credentials", starts),
    }
    return {
        name: chart(title, across, "milliseconds", _series(rows))
        for name, (title, across, rows) in drawn.items()
        if rows
    }


def _numbers(row: Row) -> list[int]:
    return [int(number.replace(",", "")) for number in re.findall(r"[\d,]*\d", row.case)]


def _is_along(row: Row) -> bool:
    numbers = _numbers(row)
    return numbers[-1] == max(1, numbers[0] // 10)


def _series(rows: Iterable[Row]) -> dict[str, list[Point]]:
    series: dict[str, list[Point]] = {}
    for each in rows:
        points = series.setdefault(each.contender, [])
        if each.seen and each.seen.p50 > 0:
            points.append(Point(_numbers(each)[0], each.seen.p50, each.seen.p90))
    return series
