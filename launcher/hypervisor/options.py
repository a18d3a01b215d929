# SPDX-License-Identifier: MIT
"""cloud-hypervisor's option grammar: parse, merge and render, as each version's own parser reads it.

Source of the grammar: cloud-hypervisor option_parser/src/lib.rs. It changed once, in v48.0 (commit
9825397350aa). Before, the parser dropped quotes when it split the option, and split lists at every comma.
Since then, quotes stay in list elements, and brackets and quotes protect commas there.

The grammar has no escape for a comma, so it cannot express every string. A merge therefore reads its result
back, and refuses it if the parser would read something different. No error of this module quotes a value.
"""

from __future__ import annotations

import enum

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container, Mapping, Sequence
    from typing import Final

WHITESPACE: Final = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)
"""What Rust's ``str::trim`` removes (Unicode White_Space). ``str.strip`` removes four more characters."""

OEM_STRINGS: Final = "oem_strings"


class Grammar(enum.Enum):
    """Version of the parser that reads the option."""

    UP_TO_47 = 47
    FROM_48 = 48
    FROM_54 = 54
    """Takes blanks around the pairs of a list like ``[0@[1], 1@[2]]`` (commit 8b6f4b089)."""

    @classmethod
    def of(cls, major: int) -> Grammar:
        """The grammar of a cloud-hypervisor release."""
        if major >= cls.FROM_54.value:
            return cls.FROM_54
        return cls.FROM_48 if major >= cls.FROM_48.value else cls.UP_TO_47


class Fault(enum.Enum):
    """Why cloud-hypervisor would refuse an option, or why this module refuses to merge it."""

    SYNTAX = "quotes or brackets do not match, or a key has no value"
    UNKNOWN_KEY = "it has a key that this version of cloud-hypervisor does not know"
    CONVERSION = "a list in it cannot be read"
    REPEATED_STRINGS = "oem_strings occurs twice, and cloud-hypervisor silently keeps only the last one"
    UNFAITHFUL = "its strings cannot be written in a form that cloud-hypervisor reads back unchanged"


class OptionError(ValueError):
    """A refused option. The text says why, and never quotes the option's content."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.value)
        self.fault = fault


def split_commas(text: str, grammar: Grammar) -> list[str]:
    """The comma-separated pieces, as this grammar's parser sees them. Raises `OptionError` (SYNTAX)."""
    return [piece for piece, _ in _split(text, grammar)]


def _split(text: str, grammar: Grammar) -> list[tuple[str, str]]:
    """Each piece as the parser reads it and as it was written. Up to v47, they differ in quotes."""
    drop_quotes = grammar is Grammar.UP_TO_47
    pieces: list[tuple[str, str]] = []
    seen: list[str] = []
    written: list[str] = []
    depth = 0
    quoted = False
    for char in text.strip(WHITESPACE):
        if char == "," and not quoted and depth == 0:
            pieces.append(("".join(seen), "".join(written)))
            seen.clear()
            written.clear()
            continue
        written.append(char)
        if char == '"':
            quoted = not quoted
            if drop_quotes:
                continue
        elif char in "[]" and (drop_quotes or not quoted):
            depth += 1 if char == "[" else -1
            if depth < 0:
                raise OptionError(Fault.SYNTAX)
        seen.append(char)
    if quoted or depth:
        raise OptionError(Fault.SYNTAX)
    pieces.append(("".join(seen), "".join(written)))
    return pieces


def parse(text: str, keys: Container[str], grammar: Grammar) -> dict[str, str]:
    """Raw values by key. The last value of a repeated key counts, as in cloud-hypervisor.

    Raises `OptionError` (SYNTAX, UNKNOWN_KEY).
    """
    values: dict[str, str] = {}
    if not text.strip(WHITESPACE):
        return values
    for piece in split_commas(text, grammar):
        key, equals, value = piece.partition("=")
        if key not in keys:
            raise OptionError(Fault.UNKNOWN_KEY)
        if not equals:
            raise OptionError(Fault.SYNTAX)
        values[key] = value.strip(WHITESPACE)
    return values


def words(text: str, grammar: Grammar) -> list[tuple[str, str | None]]:
    """Keys with their raw values, for options that also have keys without one (``tty``)."""
    if not text.strip(WHITESPACE):
        return []
    pieces = [piece.partition("=") for piece in split_commas(text, grammar)]
    return [(key, value.strip(WHITESPACE) if equals else None) for key, equals, value in pieces]


def plain(value: str, grammar: Grammar) -> str:
    """A value without its quotes. From v48 on, ``""`` within quotes stands for one quote."""
    if grammar is Grammar.UP_TO_47:
        return value
    out: list[str] = []
    previous = ""
    quoted = False
    for char in value:
        if char != '"':
            out.append(char)
        else:
            if previous == '"' and not quoted:
                out.append('"')
            quoted = not quoted
        previous = char
    return "".join(out)


def render(values: Mapping[str, str], grammar: Grammar) -> str:
    """The option's text, which this grammar's parser reads as these values; inverse of `parse` and `plain`.

    Leaves lists, which stand in brackets, as they are. Raises `OptionError` (UNFAITHFUL) for values that the
    grammar cannot express: up to v47, these are all values with a comma, a bracket or a quote.
    """
    rendered = ",".join(f"{key}={_quoted(value, grammar)}" for key, value in values.items())
    try:
        again = parse(rendered, values, grammar)
    except OptionError:
        again = {}
    if {key: plain(value, grammar) for key, value in again.items()} != dict(values):
        raise OptionError(Fault.UNFAITHFUL)
    return rendered


def _quoted(value: str, grammar: Grammar) -> str:
    listed = value.startswith("[") and value.endswith("]") and '"' not in value
    if grammar is Grammar.UP_TO_47 or listed or not set(value) & set('",[]' + WHITESPACE):
        return value
    return '"' + value.replace('"', '""') + '"'


def string_list(value: str, grammar: Grammar) -> list[str]:
    """The elements of a list value. Raises `OptionError` (CONVERSION)."""
    inner = value.strip(WHITESPACE).strip("[]")
    if grammar is Grammar.UP_TO_47:
        return inner.split(",")
    try:
        return split_commas(inner, grammar)
    except OptionError:
        raise OptionError(Fault.CONVERSION) from None


def oem_strings(platform: str, grammar: Grammar) -> list[str]:
    """The OEM strings of a ``--platform`` value. Raises `OptionError`, also if they are given twice."""
    return _strings(_pieces(platform, grammar), grammar)


def merge_oem_strings(platform: str, strings: Sequence[str], grammar: Grammar) -> str:
    """The ``--platform`` value with these OEM strings added after its own.

    Everything else in it stays as it was written. This function reads the result back. It raises
    `OptionError` (UNFAITHFUL) unless that gives exactly the old strings and then the new ones.
    """
    pieces = _pieces(platform, grammar)
    wanted = [*_strings(pieces, grammar), *strings]
    rendered = f"{OEM_STRINGS}=[{','.join(wanted)}]"
    out = [rendered if _key(seen) == OEM_STRINGS else written for seen, written in pieces]
    if rendered not in out:
        out.append(rendered)
    merged = ",".join(out)
    try:
        again = _pieces(merged, grammar)
        faithful = _strings(again, grammar) == wanted and _others(again) == _others(pieces)
    except OptionError:
        faithful = False
    if not faithful:
        raise OptionError(Fault.UNFAITHFUL)
    return merged


def _pieces(platform: str, grammar: Grammar) -> list[tuple[str, str]]:
    pieces = _split(platform, grammar) if platform.strip(WHITESPACE) else []
    if any("=" not in seen for seen, _ in pieces):
        raise OptionError(Fault.SYNTAX)
    return pieces


def _strings(pieces: Sequence[tuple[str, str]], grammar: Grammar) -> list[str]:
    found = [seen.partition("=")[2].strip(WHITESPACE) for seen, _ in pieces if _key(seen) == OEM_STRINGS]
    if len(found) > 1:
        raise OptionError(Fault.REPEATED_STRINGS)
    return string_list(found[0], grammar) if found and found[0] else []


def _key(piece: str) -> str:
    return piece.partition("=")[0]


def _others(pieces: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    return [
        (key, value.strip(WHITESPACE))
        for key, _, value in (seen.partition("=") for seen, _ in pieces)
        if key != OEM_STRINGS
    ]
