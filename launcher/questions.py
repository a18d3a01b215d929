# SPDX-License-Identifier: MIT
"""``--questions``: answers many ``--check`` and ``--explain`` in one process, for ``credferry doctor``.

Each line of standard input is a question, as JSON: ``{"directory": "/", "words": [...]}``. The words are the
launcher's own arguments. Each answer is a line of JSON: ``{"status": 0, "output": "...", "error": "..."}``,
which is what a launcher of its own would have returned and printed. No question starts a VM.
"""

from __future__ import annotations

import contextlib
import io
import json
import os

from credferry.launcher import arguments
from credferry.launcher.errors import LaunchError, usage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import TextIO


def answer_all(lines: Iterable[str], answers: TextIO, ask: Callable[[Sequence[str]], int]) -> None:
    """Answer each line. ``ask`` returns the status for one question's words, and prints the rest.

    A question that cannot be read is answered with a refusal, and does not keep the others from an answer.
    """
    for line in lines:
        said, warned = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(warned):
            try:
                status = ask(_words(line))
            except LaunchError as error:
                warned.write(f"credferry-launch: {error.args[0]}: {error.hint}\n")
                status = error.status
        answer = {"status": status, "output": said.getvalue(), "error": warned.getvalue()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _words(line: str) -> list[str]:
    """The words of a question, after a change into its directory. Raises `LaunchError` (USAGE)."""
    try:
        question = json.loads(line)
        directory, words = question["directory"], question["words"]
    except (ValueError, TypeError, KeyError, RecursionError):
        directory = words = None
    if not isinstance(directory, str) or not isinstance(words, list):
        raise usage("a line is not a question", "see credferry-launch --help")
    if not all(isinstance(word, str) for word in words) or not arguments.is_question(words):
        raise usage("a question has neither --check nor --explain", "see credferry-launch --help")
    try:
        os.chdir(directory)
    except (OSError, ValueError):
        raise usage("a question's directory cannot be entered", "correct the VM's files") from None
    return words
