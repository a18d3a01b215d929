# SPDX-License-Identifier: MIT
"""``python -m tests.mutants [protections|core] [NAME…]``: both kinds without an argument.

Exits with 1 where a test does not notice that its protection is gone, a core module is below its score, or a
change of one survives that ``survivors.toml`` does not list.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.mutants import core, takeout
from tests.mutants.protections import PROTECTIONS
from tests.mutants.scores import note_score, table
from tests.support.numbers import Number, note


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutants", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("kind", nargs="?", choices=("protections", "core"))
    parser.add_argument("names", nargs="*", help="protections by name, or core modules by path; all without")
    chosen = parser.parse_args()
    good = True
    with tempfile.TemporaryDirectory(prefix="mutants-") as directory:
        if chosen.kind in {None, "protections"}:
            good = _protections(Path(directory), chosen.names)
        if chosen.kind in {None, "core"}:
            good = _core(Path(directory), chosen.names) and good
    return 0 if good else 1


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 (the command's output)


def _protections(directory: Path, names: list[str]) -> bool:
    outcomes = []
    for protection in PROTECTIONS:
        if names and protection.name not in names:
            continue
        for outcome in takeout.run(protection, directory):
            outcomes.append(outcome)
            _say(f"{'noticed' if outcome.noticed else 'SURVIVES'} | {outcome.protection} | {outcome.test}")
            _say(f"    {outcome.said}")
    noticed = sum(outcome.noticed for outcome in outcomes)
    _say(f"{noticed} of {len(outcomes)} tests notice that their protection is gone")
    if not names:
        note(Number.PROTECTIONS, len(PROTECTIONS))
        note(Number.PROTECTIONS_UNNOTICED, len(outcomes) - noticed)
    return noticed == len(outcomes)


def _core(directory: Path, names: list[str]) -> bool:
    known = core.known_survivors()
    found = []
    for module in names or core.MODULES:
        mutants = core.run(directory, [module])
        for mutant in mutants:
            if not (mutant.noticed or mutant.is_message or known.has(mutant)):
                _say(f"{mutant.module} {mutant.name} survives and is not listed:\n{mutant.diff}\n")
        for _, diff in core.stale(mutants, known):
            _say(f"{module} is listed with a change that does not survive; drop it from the list:\n{diff}\n")
        found += core.scores(mutants, known)
        note_score(found[-1])
    _say("\n".join(table(found)))
    bad = [score.module for score in found if not score.is_good]
    if bad:
        _say(f"below {core.SCORE_MIN:.0%}, or with survivors that are not listed: {', '.join(bad)}")
    return not bad


if __name__ == "__main__":
    sys.exit(main())
