# SPDX-License-Identifier: MIT
"""The command: which targets, for how long, and what is said of it meanwhile and at its end."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.fuzz import corpus
from tests.fuzz.engine import Limits, Pulse, Run, fuzz
from tests.fuzz.target import directory
from tests.support.numbers import Number, note

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.fuzz.target import Target

_SECONDS: Final = 60
_PULSE_SECONDS: Final = 10.0


def main(targets: Mapping[str, Target], argv: Sequence[str]) -> int:
    """Run the command; its exit status: 1 when a target has a finding, 2 for a target that there is none."""
    asked = _parser().parse_args(argv)
    if unknown := [name for name in asked.target if name not in targets]:
        sys.stderr.write(f"no target {unknown[0]!r}: use one of {', '.join(targets)}\n")
        return 2
    chosen = [targets[name] for name in asked.target or targets]
    if asked.list:
        sys.stdout.writelines(f"{target.name:15} {target.about}\n" for target in chosen)
        return 0
    if asked.keep:
        sys.stdout.writelines(f"{target.name:15} {corpus.keep(target)} new\n" for target in chosen)
        return 0
    directory()  # made by this process, which is the one that can remove it
    seconds = asked.seconds or (0 if asked.runs else _SECONDS)
    limits = Limits(seconds=seconds, runs=asked.runs, seed=asked.seed)
    runs = [_run(target, limits, fresh=asked.fresh) for target in chosen]
    total = sum(run.inputs for run in runs)
    if seconds and not asked.target:  # the page is of the last run of full length
        note(Number.FUZZED, total)
    bad = sum(not run.good for run in runs)
    sys.stdout.write(f"{total} inputs, {len(chosen)} targets, {bad} findings\n")
    return 1 if bad else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz the parsers.")
    parser.add_argument("--seconds", type=int, default=0, help=f"for each target; {_SECONDS} unless --runs")
    parser.add_argument("--runs", type=int, default=0, help="inputs for each target; no limit by default")
    parser.add_argument("--seed", type=int, default=0, help="of chance; by default another each time")
    parser.add_argument("--fresh", action="store_true", help="use and grow the repository's corpus alone")
    parser.add_argument("--keep", action="store_true", help="copy what is new from the cache's corpus")
    parser.add_argument("--list", action="store_true", help="show what there is")
    parser.add_argument("target", nargs="*", help="which; all by default")
    return parser


def _run(target: Target, limits: Limits, *, fresh: bool) -> Run:
    progress = _Progress(target.name)
    with ExitStack() as stack:
        # libFuzzer writes into the first directory, and leaves the others as they are.
        new = Path(stack.enter_context(tempfile.TemporaryDirectory())) if fresh else corpus.cached(target)
        directories = [new, *(each for each in [corpus.committed(target)] if each.is_dir())]
        run = fuzz(target, limits, directories, corpus.findings(), progress.pulse)
    progress.end(run)
    return run


class _Progress:
    """One line a target; on a terminal it is written again and again, and elsewhere every ten seconds."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._began = time.monotonic()
        self._said = self._began

    def pulse(self, pulse: Pulse) -> None:
        """Say how far it is."""
        now = time.monotonic()
        live = sys.stdout.isatty()
        if now - self._said < (0.5 if live else _PULSE_SECONDS):
            return
        self._said = now
        line = f"{self._head()} {pulse.inputs} inputs, {pulse.coverage} branches, corpus of {pulse.corpus}"
        sys.stdout.write(f"\r{line}\x1b[K" if live else f"{line}\n")
        sys.stdout.flush()

    def end(self, run: Run) -> None:
        """Say how it ended, and all that is known of a finding."""
        clear = "\r\x1b[K" if sys.stdout.isatty() else ""
        if run.good:
            sys.stdout.write(f"{clear}{self._head()} {run.inputs} inputs, good\n")
        else:
            told = "\n".join(line for line in run.said if not line.startswith(("INFO:", "stat::")))
            where = run.finding or "none was written: see above"
            sys.stdout.write(f"{clear}{self._head()} FINDING\n{told}\ninput: {where}\n")
        sys.stdout.flush()

    def _head(self) -> str:
        return f"{self._name:15} {time.monotonic() - self._began:4.0f} s"
