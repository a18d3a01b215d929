# SPDX-License-Identifier: MIT
"""What a run has measured: distributions by measure, case and contender."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

FILE = Path(__file__).with_name("results.json")

CREDFERRY = "credferry"
LIMIT = "the limit"
SHELL = "shell agent"
PATH_UNIT = ".path unit"
POLLING = "polling script"


@dataclass(frozen=True, slots=True)
class Distribution:
    """How values lie: nearest ranks, so each is a value that was seen."""

    count: int
    p50: float
    p90: float
    p99: float
    largest: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Distribution | None:
        """The distribution of at least one value; None for none."""
        ordered = sorted(values)
        if not ordered:
            return None
        p50, p90, p99 = (ordered[max(0, ceil(len(ordered) * part) - 1)] for part in (0.5, 0.9, 0.99))
        return cls(len(ordered), *(round(value, 4) for value in (p50, p90, p99, ordered[-1])))


@dataclass(frozen=True, slots=True)
class Row:
    """A contender in one case of a measure. ``rounds`` are the medians of series of the same, A and A."""

    measure: str
    case: str
    contender: str
    unit: str
    seen: Distribution | None
    rounds: tuple[float, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)
    """What else was counted: ``missed`` changes, ``stale`` starts."""

    @property
    def middle(self) -> float:
        """The median; not a number where nothing was seen."""
        return self.seen.p50 if self.seen else float("nan")


def row(
    measure: str,
    case: str,
    contender: str,
    unit: str,
    rounds: Sequence[Sequence[float]],
    **counts: int,
) -> Row:
    """A row from the values of one or more series of the same."""
    medians = [Distribution.of(each) for each in rounds]
    return Row(
        *(measure, case, contender, unit),
        seen=Distribution.of(value for each in rounds for value in each),
        rounds=tuple(each.p50 for each in medians if each is not None),
        counts={name: count for name, count in counts.items() if count},
    )


@dataclass(frozen=True, slots=True)
class Results:
    """All rows of a run, and on what they were measured."""

    machine: dict[str, str]
    rows: list[Row] = field(default_factory=list)

    def find(self, measure: str, case: str, contender: str) -> Row | None:
        """One row; None where it was not measured."""
        wanted = (measure, case, contender)
        return next(
            (each for each in self.rows if (each.measure, each.case, each.contender) == wanted), None
        )

    def of(self, measure: str) -> list[Row]:
        """The rows of a measure, in the order in which they were measured."""
        return [each for each in self.rows if each.measure == measure]

    def replace(self, rows: Iterable[Row]) -> None:
        """Take rows in, in place of all of the same measures."""
        taken = list(rows)
        names = {each.measure for each in taken}
        self.rows[:] = [each for each in self.rows if each.measure not in names] + taken

    def save(self, file: Path = FILE) -> None:
        """Write the file anew."""
        document = {"machine": self.machine, "rows": [asdict(each) for each in self.rows]}
        file.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, file: Path = FILE) -> Results:
        """What a run has written."""
        document = json.loads(file.read_text(encoding="utf-8"))
        rows = []
        for each in document["rows"]:
            seen = each.pop("seen")
            rounds = tuple(each.pop("rounds"))
            rows.append(Row(**each, seen=Distribution(**seen) if seen else None, rounds=rounds))
        return cls(document["machine"], rows)


def machine(*, quick: bool) -> dict[str, str]:
    """What this is measured on. No name, no path, no address."""
    systemd = subprocess.run(["systemctl", "--version"], check=True, capture_output=True, text=True).stdout
    cpu = ""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
    return {
        "when": datetime.now(UTC).isoformat(timespec="minutes"),
        "run": "quick" if quick else "full",
        "processors": f"{len(os.sched_getaffinity(0))} of {cpu}",
        "load before": f"{os.getloadavg()[0]:.2f}",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "systemd": systemd.split()[1],
    }
