# SPDX-License-Identifier: MIT
"""``python -m benchmarks [--quick] [--output FILE] [MEASURE...]``: measure, and write what was found."""

from __future__ import annotations

import argparse
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import accepted, executed, growth, idle, launch, live, page, restarts, sealing, stages
from benchmarks.bed import Bed
from benchmarks.results import FILE, Results, machine

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.results import Row

ON_A_HOST: dict[str, Callable[..., list[Row]]] = {
    "sealing": sealing.measure,
    "launch": launch.measure,
    "restarts": restarts.measure,
    "executed": executed.measure,
    "accepted": accepted.measure,
    "idle": idle.measure,
    "stages": stages.measure,
}
HERE: dict[str, Callable[..., list[Row]]] = {"growth": growth.measure, "live": live.measure}


def main(words: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("measures", nargs="*", metavar="MEASURE", help=", ".join([*ON_A_HOST, *HERE]))
    parser.add_argument("--quick", action="store_true", help="few runs of few sizes: whether it works")
    parser.add_argument(
        "--output", type=Path, default=FILE, help="where results go (JSON); the page is of its default's"
    )
    asked = parser.parse_args(words)
    chosen = asked.measures or [*ON_A_HOST, *HERE]
    if unknown := set(chosen) - {*ON_A_HOST, *HERE}:
        parser.error(f"no such measure: {', '.join(sorted(unknown))}")
    results = Results(machine(quick=asked.quick))
    if asked.measures and asked.output.exists():
        results = Results.load(asked.output)
    take = partial(_take, results, asked.output, quick=asked.quick)
    for name in [each for each in HERE if each in chosen]:
        take(name, HERE[name])
    on_a_host = [each for each in ON_A_HOST if each in chosen]
    if on_a_host:
        with Bed() as bed:
            for name in on_a_host:
                take(name, partial(ON_A_HOST[name], bed))
    sys.stdout.write(page.render(results))
    if asked.output == FILE:
        page.write(results)


def _take(
    results: Results, output: Path, name: str, measure: Callable[..., list[Row]], *, quick: bool
) -> None:
    began = time.monotonic()
    results.replace(measure(quick=quick))
    results.save(output)  # at once: what comes later may fail
    sys.stderr.write(f"== {name}: {time.monotonic() - began:.0f} s\n")


if __name__ == "__main__":
    main()
