# SPDX-License-Identifier: MIT
"""How fast a time or a memory grows: the exponent E for which it is about (secrets + VMs) to the power of E.

With an exponent of 1, ten times the secrets and VMs take ten times as long. `fit` is the slope of a straight
line through the logarithms of all cases, by least squares. Small cases have a fixed part, which makes it
flatter. So `last` has the slope between the two largest cases, which have ten times as many secrets and VMs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import log, log10
from typing import TYPE_CHECKING

from benchmarks import accepted, growth
from benchmarks.results import CREDFERRY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.results import Results

_CASE = re.compile(r"([\d,]+) secrets?(?: of ([\d,]+) bytes)?, ([\d,]+) VMs?")
_SIZE = 32
_TENFOLD = ((1000, 100), (10000, 1000))


@dataclass(frozen=True, slots=True)
class Exponent:
    """The growth of one measure, over so many cases; ``last`` is not a number if it was not measured."""

    measure: str
    cases: int
    fit: float
    last: float


def exponents(results: Results) -> Iterator[Exponent]:
    """Of all measures that have enough cases for a line."""
    for measure in (growth.TIME, growth.MEMORY, accepted.ONE):
        values = dict(_values(results, measure))
        if len({sum(size) for size in values}) > 2:
            smaller, larger = (values.get(size, float("nan")) for size in _TENFOLD)
            points = [(log(sum(size)), log(value)) for size, value in values.items()]
            yield Exponent(measure, len(values), _slope(points), log10(larger / smaller))


def _values(results: Results, measure: str) -> Iterator[tuple[tuple[int, int], float]]:
    """Secrets and VMs, and the median of credferry; of several lengths of a secret, the shortest."""
    for each in results.of(measure):
        found = _CASE.fullmatch(each.case)
        if each.contender == CREDFERRY and each.seen and found and found[2] in {None, str(_SIZE)}:
            yield (int(found[1].replace(",", "")), int(found[3].replace(",", ""))), each.middle


def _slope(points: list[tuple[float, float]]) -> float:
    middle_x = sum(x for x, _ in points) / len(points)
    middle_y = sum(y for _, y in points) / len(points)
    rises = sum((x - middle_x) * (y - middle_y) for x, y in points)
    runs = sum((x - middle_x) * (x - middle_x) for x, _ in points)
    return rises / runs
