# SPDX-License-Identifier: MIT
"""What a document has its reader do: commands with what they print, and files to write.

A fenced block ``console`` holds commands behind ``# ``, which go on where a backslash ends the line, each
followed by what it prints; ``…`` stands for anything. A comment on a line of its own says more about the
block that follows it:

- ``<!-- file: PATH -->``: the block is the content of that file;
- ``<!-- soon -->``: each command is repeated until it prints this;
- ``<!-- status: N -->``: the last command ends with this status, the others with 0;
- ``<!-- not run: REASON -->``: the block is for the reader alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

SHELLS = frozenset({"console", "sh", "shell", "bash"})
"""Languages of blocks that hold commands."""
_COMMENT = re.compile(r"<!-- (file|soon|status|not run)(?:: (.+))? -->")
_ANYTHING = "…"
_END = "\n"  # like no line


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """A file that the reader writes."""

    line: int
    path: str
    content: str


@dataclass(frozen=True, slots=True)
class Command:
    """A command that the reader types, and what it prints, as far as the document says."""

    line: int
    command: str
    output: tuple[str, ...]
    status: int = 0
    is_awaited: bool = False

    def agrees(self, printed: str) -> bool:
        """Whether this is what the document says; always where it says nothing."""
        return not self.output or _agree(self.output, printed.rstrip("\n").split("\n"))


Step = WrittenFile | Command


class DocumentError(Exception):
    """The document cannot be followed; the text says where."""


def steps(document: Path) -> tuple[Step, ...]:
    """All that a reader does, in order. Raises `DocumentError` for a block that does not say what it is."""
    return tuple(step for block in _blocks(document) for step in _steps(document, block))


def snippets(document: Path, language: str) -> tuple[tuple[int, str], ...]:
    """The blocks in a language, each with the number of its first line."""
    return tuple((block.line, block.text) for block in _blocks(document) if block.language == language)


@dataclass(frozen=True, slots=True)
class _Block:
    line: int
    language: str
    text: str
    says: dict[str, str]


def _blocks(document: Path) -> Iterator[_Block]:
    lines = enumerate(document.read_text().splitlines(), 1)
    says: dict[str, str] = {}
    for number, line in lines:
        if match := _COMMENT.fullmatch(line):
            says[match[1]] = match[2] or ""
        elif line.startswith("```"):
            body = []
            for _, inside in lines:
                if inside == "```":
                    break
                body.append(f"{inside}\n")
            else:
                raise DocumentError(f"{document.name}:{number}: the block has no end")
            yield _Block(number, line.removeprefix("```").strip(), "".join(body), says)
            says = {}
        elif line and says:
            raise DocumentError(f"{document.name}:{number}: a block must follow the comment before it")


def _steps(document: Path, block: _Block) -> Iterator[Step]:
    where = f"{document.name}:{block.line}"
    if "not run" in block.says:
        if not block.says["not run"]:
            raise DocumentError(f"{where}: say why it is not run")
    elif "file" in block.says:
        yield WrittenFile(block.line, block.says["file"], block.text)
    elif block.language == "console":
        yield from _commands(where, block)
    elif block.language in SHELLS:
        raise DocumentError(f"{where}: commands are run: make it a `console`, or say why not")


def _commands(where: str, block: _Block) -> Iterator[Command]:
    found: list[tuple[int, str, list[str]]] = []
    is_open = False
    for number, line in enumerate(block.text.splitlines(), block.line + 1):
        if is_open:
            at, command, output = found[-1]
            found[-1] = (at, f"{command}\n{line}", output)
            is_open = line.endswith("\\")
        elif line.startswith("# "):
            found.append((number, line.removeprefix("# "), []))
            is_open = line.endswith("\\")
        elif found:
            found[-1][2].append(line)
        else:
            raise DocumentError(f"{where}: begins with no command")
    for number, command, output in found:
        is_last = number == found[-1][0]
        status = int(block.says.get("status", 0)) if is_last else 0
        yield Command(number, command, tuple(output), status, "soon" in block.says)


def _agree(expected: Sequence[str], printed: Sequence[str]) -> bool:
    """Whether lines are as expected, where one that is only ``…`` stands for any number of them."""
    lines = [*map(_narrow, printed), _END]
    reached = {0}  # so many of the printed lines may be behind us
    for line in expected:
        if line.strip() == _ANYTHING:
            reached = set(range(min(reached), len(printed) + 1))
        else:
            pattern = _pattern(line)
            reached = {at + 1 for at in reached if pattern.fullmatch(lines[at])}
        if not reached:
            return False
    return len(printed) in reached


def _pattern(line: str) -> re.Pattern[str]:
    # The blanks beside it as well: an empty column has none of its own once lines are narrow.
    return re.compile(".*".join(re.escape(part.strip()) for part in _narrow(line).split(_ANYTHING)))


def _narrow(line: str) -> str:
    """With one blank where there are more: tables are as wide as what is in them."""
    return re.sub(r"\s+", " ", line).strip()
