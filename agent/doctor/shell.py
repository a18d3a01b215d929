# SPDX-License-Identifier: MIT
"""Reads the words of a shell script's last command as data, if the script's text alone decides them.

This module runs nothing and expands nothing. A word that depends on more than the text is not guessed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_START: Final = re.compile(r"^[ \t]*exec[ \t]+", re.MULTILINE)
_BLANKS: Final = re.compile(r"(?:[ \t]|\\\n)*")
_PLAIN: Final = re.compile(r"[\w@%+=:,./-]+", re.ASCII)
_SINGLE: Final = re.compile(r"'([^']*)'")
_DOUBLE: Final = re.compile(r'"((?:[^"\\$`]|\\[\\"$`])*)"')
_ESCAPED: Final = re.compile(r"\\([^\n])")
_ALL: Final = re.compile(r'"\$@"(?=\s|\Z)')
_ADDED: Final = re.compile(r"\$(?:runtime_args|\{runtime_args(?::-)?\})(?=\s|\Z)")
"""The place where microvm.nix inserts the output of `microvm.extraArgsScript`."""
_ASSIGNED: Final = re.compile(r"^[ \t]*runtime_args=(.*)", re.MULTILINE)


class UnclearError(Exception):
    """The text alone does not decide the words. The message says why, and does not quote the text."""


@dataclass(frozen=True, slots=True)
class Command:
    """The command that a script ends with. None stands for the script's own arguments, ``"$@"``."""

    words: tuple[str | None, ...]

    def with_arguments(self, arguments: tuple[str, ...]) -> tuple[str, ...]:
        """The words for a script that is started with these arguments."""
        return tuple(each for word in self.words for each in (arguments if word is None else (word,)))


def last_command(text: str) -> Command:
    """The command that a script executes at its end, without ``exec`` and ``-a NAME``.

    Raises `UnclearError`.
    """
    reason = UnclearError("the script does not end with an exec")
    for start in _START.finditer(text):
        try:
            words = _words(text, start.end())
        except UnclearError as error:
            reason = error
            continue
        if words[:1] == ["-a"]:
            del words[:2]
        if not words or words[0] is None or words[0].startswith("-"):
            reason = UnclearError("the script's exec has options that doctor does not know")
            continue
        return Command(tuple(words))
    raise reason


def _words(text: str, at: int) -> list[str | None]:
    """The words from ``at`` to the end of the line. No other command may follow that line."""
    words: list[str | None] = []
    while True:
        at = _end(_BLANKS, text, at)
        if at == len(text) or text[at] == "\n":
            break
        if _ALL.match(text, at):
            words.append(None)
            at = _end(_ALL, text, at)
        elif _ADDED.match(text, at):
            if any(value.strip() for value in _ASSIGNED.findall(text)) or not _ASSIGNED.search(text):
                raise UnclearError("the script adds arguments that are only known when it runs")
            at = _end(_ADDED, text, at)
        else:
            word, at = _word(text, at)
            words.append(word)
    if any(line.strip() and not line.lstrip().startswith("#") for line in text[at:].splitlines()):
        raise UnclearError("the script does not end with an exec")
    return words


def _word(text: str, at: int) -> tuple[str, int]:
    """The word at ``at``, and the position after it."""
    parts = []
    while at < len(text) and text[at] not in " \t\n" and not text.startswith("\\\n", at):
        for kind in (_PLAIN, _SINGLE, _DOUBLE, _ESCAPED):
            found = kind.match(text, at)
            if found is not None:
                break
        else:
            raise UnclearError("a word of the script's exec is only known when it runs")
        part = found[0] if kind is _PLAIN else found[1]
        parts.append(re.sub(r"\\(.)", r"\1", part) if kind is _DOUBLE else part)
        at = found.end()
    return "".join(parts), at


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    return at if found is None else found.end()
