# SPDX-License-Identifier: MIT
"""What the doctor asks the launchers of VMs. Each starts once, for all VMs that have it and the same user.

An answer is kept for this run of the command. A launcher of a release that does not know ``--questions``, or
one that does not answer all of them in time, is started for each question.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from credferry.agent.doctor import probe
from credferry.agent.doctor.finding import UnseenError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    Answer = subprocess.CompletedProcess[str]

_MANY: Final = "--questions"


@dataclass(frozen=True, slots=True)
class Question:
    """A launcher's arguments with ``--check`` or ``--explain``, and the user and directory to ask as."""

    program: str
    words: tuple[str, ...]
    user: str = ""
    directory: Path = Path("/")


_known: Final[dict[Question, Answer]] = {}


def ask(question: Question) -> Answer:
    """The launcher's answer. Raises `UnseenError`."""
    if question not in _known:
        _known[question] = probe.run(
            question.program, *question.words, user=question.user, directory=question.directory
        )
    return _known[question]


def ask_all(questions: Iterable[Question]) -> None:
    """Ask ahead, so that `ask` has the answers. What gets no answer here is left to `ask`."""
    groups: dict[tuple[str, str], list[Question]] = {}
    for each in dict.fromkeys(questions):
        if each not in _known:
            groups.setdefault((each.program, each.user), []).append(each)
    for (program, user), group in groups.items():
        if len(group) > 1:
            _known.update(zip(group, _together(program, user, group), strict=False))


def _together(program: str, user: str, group: Sequence[Question]) -> list[Answer]:
    """The answers to all questions, or none."""
    documents = [{"directory": str(each.directory), "words": each.words} for each in group]
    said = "".join(f"{json.dumps(each)}\n" for each in documents)
    try:
        done = probe.run(program, _MANY, user=user, said=said)
        answers = [_answer(line) for line in done.stdout.splitlines()]
    except (UnseenError, ValueError, TypeError, KeyError, RecursionError):
        return []
    return answers if done.returncode == 0 and len(answers) == len(group) else []


def _answer(line: str) -> Answer:
    """One answer. Raises `ValueError`, `TypeError`, `KeyError` or `RecursionError` for anything else."""
    document = json.loads(line)
    status, output, error = document["status"], document["output"], document["error"]
    if not (isinstance(status, int) and isinstance(output, str) and isinstance(error, str)):
        raise TypeError
    return subprocess.CompletedProcess((), status, output, error)
