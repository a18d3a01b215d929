# SPDX-License-Identifier: MIT
"""docs/reliability.md: what the last runs of the tests have shown, in numbers.

``python -m tests.reliability`` writes the page from the numbers that runs have kept, and leaves what no run
has kept, or what has not changed, as the page has it. ``--check`` writes nothing, and fails where the page
is not of this form; its numbers are not looked at.
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.mutants.core import MODULES, Score
from tests.mutants.scores import HEAD, noted_scores, row
from tests.support.numbers import Number, noted

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

PAGE: Final = Path(__file__).resolve().parents[1] / "docs/reliability.md"
_NONE: Final = ("no run yet", "")

_HEAD: Final = """\
# Reliability

This page has the results of tests that try hard to break credferry, in numbers. Each number is from the
last run of its test (for the soak and for fuzzing: the last run of full length), on any machine.
`make reliability` writes the page. The section below the tables says how each number is counted.

| what | number | when (UTC) |
|---|---:|---|
"""
_DETAILS: Final = """
## How each is counted

"""
_SCORES: Final = """
## Core modules

The table says, for the last run of each core module, how many small changes to the module the fast tests
notice. Changes to the words of a message do not count. A change that no test notices counts as not noticed,
and is listed with the reason in [`tests/mutants/survivors.toml`](../tests/mutants/survivors.toml).
`make mutants` fails below 90 %, and for each survivor that is not listed.

"""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a number comes from: the file that notes it, how to run it, and what exactly is counted."""

    path: str
    command: str
    meaning: str


_MODEL: Final = "tests/property/test_model.py"
_FLEET: Final = "tests/property/test_fleet_model.py"
_CRASH: Final = "tests/host/test_crash.py"
_SOAK: Final = "tests/soak.py"
_CANARY: Final = "tests/host/test_canary.py"
_PROTECTIONS: Final = "tests/mutants/protections.py"
SOURCES: Final = {
    Number.MODEL_RUNS: Source(
        *(_MODEL, "make nightly"),
        "Histories of a model world that publishes, reverts, removes, crashes, holds and fails at random. "
        "At the end of each, every VM runs what is published, and no VM was restarted without need.",
    ),
    Number.MODEL_STATES: Source(
        *(_MODEL, "make nightly"),
        "States of that world that were checked, in all its histories together.",
    ),
    Number.FLEET_RUNS: Source(
        *(_FLEET, "make nightly"),
        "Histories of two or three hosts with one etcd. Agents, hosts and members die at random, requests "
        "and answers are lost or late, hosts are cut off, limits change. An agent never works on a VM "
        "without a slot, and never more slots are held than the limit. At the end every VM runs what is "
        "published.",
    ),
    Number.FLEET_MOMENTS: Source(
        *(_FLEET, "make nightly"), "Moments at which that was checked, in all those histories together."
    ),
    Number.FLEET_REVISIONS: Source(
        *("tests/fleet.py", "python -m tests.fleet"),
        "Revisions of a real etcd of three members while one secret goes through 1,000 hosts with the "
        "limits 1, 10 and 100, and one that does not work. One member is killed in the midst. In no "
        "revision were more slots held than the limit. What does not work was tried on no more hosts.",
    ),
    Number.CRASH_POINTS: Source(
        *(_CRASH, "make nightly"),
        "Effects of one rotation (writes, renames, messages on the bus, journal records). The agent was "
        "killed right before each. After its next start it finished the rotation, with one restart.",
    ),
    Number.RANDOM_KILLS: Source(*(_CRASH, "make nightly"), "The same, at random moments."),
    Number.PUSHES_KILLED: Source(
        *("tests/host/test_push_kills.py", "make nightly"),
        "Pushes to a guest that keeps what it took. The agent, the push unit or both were killed at a "
        "random step. No value was lost, the guest loaded none twice, and the VM was never restarted.",
    ),
    Number.FAULTS: Source(
        *("tests/host/test_faults.py", "make test"),
        "Failures of the host while the agent ran: bus, journal, disk, inotify, clock, key, mounts.",
    ),
    Number.FUZZED: Source(
        *("tests/fuzz/command.py", "make fuzz"),
        "Inputs for the parsers of bytes that other users wrote. Each ended as documented.",
    ),
    Number.SOAK_ROTATIONS: Source(
        *(_SOAK, "make soak"),
        "Rotations of random secrets on one host, one by one and in bursts. Its 50 VMs are light: a program "
        "that reads its credentials and leaves a stamp like the launcher, without a hypervisor. In runs "
        "since 2026-11-29, ten of them are live: the push unit brings them what is published. At random "
        "times the agent is killed, or a VM is restarted by hand.",
    ),
    Number.SOAK_LOST: Source(
        *(_SOAK, "make soak"), "VMs that did not run what was published within two minutes, or at the end."
    ),
    Number.SOAK_DOUBLED: Source(
        *(_SOAK, "make soak"),
        "Restarts, or pushes of a value, beyond one for each change and VM, without the restarts by hand.",
    ),
    Number.SOAK_LATE: Source(
        *(_SOAK, "make soak"),
        "Rotations that took over 10 seconds from the publication to the restart of the last VM. This "
        "depends on the machine.",
    ),
    Number.LEAKS: Source(
        *(_CANARY, "make test"),
        "Places where a value was found that must not be there: arguments and environments, files, names, "
        "the journal, systemd's properties, the bus, output; in plain, Base64, hexadecimal and quoted form.",
    ),
    Number.LEAK_PATHS: Source(
        *(_CANARY, "make test"),
        "Paths on which that value travelled: successes, failures, refusals, crashes.",
    ),
    Number.PROTECTIONS: Source(
        *(_PROTECTIONS, "make mutants"),
        "Protections that SECURITY.md names. Each was removed from a copy of the code. The tests that the "
        "page names for it must then fail.",
    ),
    Number.PROTECTIONS_UNNOTICED: Source(
        *(_PROTECTIONS, "make mutants"), "Named tests that still passed without their protection."
    ),
    Number.SECURITY_SCORE: Source(
        *("tests/host/test_least_privilege.py", "make test"),
        "The exposure that `systemd-analyze security` finds in the agent's unit.",
    ),
}


def render(numbers: Mapping[Number, tuple[float, str]], page: str, scores: Iterable[Score] = ()) -> str:
    """The page with these numbers and their days. Where there is none, what the present page says."""
    present = _present(page)
    rows = []
    for number in Number:
        value, when = present.get(number, _NONE)
        if number in numbers:
            new, moment = numbers[number]
            value, when = _shown(new), moment[:10]
        rows.append(f"| {number.value} | {value} | {when} |\n")
    details = (
        f"- **{number.value}**: {source.meaning} [`{source.path}`](../{source.path}), `{source.command}`.\n"
        for number, source in SOURCES.items()
    )
    return _HEAD + "".join(rows) + _scores(scores, page) + _DETAILS + "".join(details)


def _scores(scores: Iterable[Score], page: str) -> str:
    new = {score.module: row(score) for score in scores}
    rows = []
    for module in MODULES:
        present = re.search(rf"^\| {re.escape(module)} \| .*\|$", page, re.MULTILINE)
        rows.append(new.get(module) or (present[0] if present else f"| {module} | no run yet | | | |"))
    return _SCORES + "".join(f"{line}\n" for line in (*HEAD, *rows))


def is_well_formed(page: str) -> bool:
    """Whether a page is what would be rendered, whatever its numbers."""
    return render({}, page) == page


def main() -> int:
    """The command. 1 where ``--check`` finds the page in another form."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.reliability", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the form differs")
    page = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    if not parser.parse_args().check:
        PAGE.write_text(render(noted(), page, noted_scores()), encoding="utf-8")
        return 0
    if is_well_formed(page):
        return 0
    print(f"{PAGE}: not of its form: run make reliability", file=sys.stderr)  # noqa: T201 (its output)
    return 1


def _present(page: str) -> dict[Number, tuple[str, str]]:
    rows = re.findall(r"^\| (.+?) \| (.+?) \| (.*?) \|$", page, re.MULTILINE)
    known = {number.value: number for number in Number}
    return {known[what]: (value, when) for what, value, when in rows if what in known}


def _shown(value: float) -> str:
    return f"{int(value):,}" if value == int(value) else f"{value:,}"


if __name__ == "__main__":
    sys.exit(main())
