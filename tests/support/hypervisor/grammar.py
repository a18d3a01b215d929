# SPDX-License-Identifier: MIT
"""The text of one option's value: ``key=value,flag,key=[list]``.

Written after what cloud-hypervisor's option_parser/src/lib.rs accepts, in its two dialects: quotes that
are dropped as they are read (up to v47), and quotes that stay until a value is taken (v48 and later).
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    Converter = Callable[["Reader", str], object]


class OptionError(ValueError):
    """A value that the real parser refuses. Like the real one's, the text quotes the value."""


class Dialect(enum.Enum):
    """Which releases' grammar is spoken."""

    UP_TO_V47 = enum.auto()
    SINCE_V48 = enum.auto()


def split_commas(text: str, dialect: Dialect) -> list[str]:
    """Split at the commas outside of brackets and quotes."""
    parts: list[str] = []
    current: list[str] = []
    depth = 0
    quoted = False
    for char in text.strip():
        if char == '"':
            quoted = not quoted
            if dialect is Dialect.UP_TO_V47:
                continue
        elif quoted and dialect is Dialect.SINCE_V48:
            pass
        elif char == "[":
            depth += 1
        elif char == "]":
            depth -= 1
            if depth < 0:
                raise OptionError(f"invalid syntax: {text}")
        elif char == "," and depth == 0 and not quoted:
            parts.append("".join(current))
            current = []
            continue
        current.append(char)
    if quoted or depth:
        raise OptionError(f"invalid syntax: {text}")
    return [*parts, "".join(current)]


def dequote(text: str) -> str:
    """Remove quotes; a doubled one stands for one."""
    kept: list[str] = []
    quoted = False
    before = ""
    for char in text:
        if char == '"':
            if before == '"' and not quoted:
                kept.append(char)
            quoted = not quoted
        else:
            kept.append(char)
        before = char
    return "".join(kept)


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads option values in one dialect."""

    dialect: Dialect = Dialect.SINCE_V48

    def pairs(self, text: str, keys: Iterable[str], flags: Iterable[str] = ()) -> dict[str, str]:
        """The raw value of each key that is given; a flag's is empty. The last of several wins."""
        if not text.strip():
            return {}
        known, alone = frozenset(keys), frozenset(flags)
        found: dict[str, str] = {}
        for part in split_commas(text, self.dialect):
            key, equals, value = part.partition("=")
            if key in alone:
                found[key] = ""
            elif key not in known:
                raise OptionError(f"unknown option: {key}")
            elif not equals:
                raise OptionError(f"invalid syntax: {part}")
            else:
                found[key] = value.strip()
        return found

    def fields(
        self, text: str, keys: Mapping[str, tuple[str, Converter]], flags: Iterable[str] = ()
    ) -> dict[str, object]:
        """The converted value of each key that is given and not empty, under its field's name."""
        found: dict[str, object] = {}
        for key, raw in self.pairs(text, keys, flags).items():
            if key in keys and raw:
                field, convert = keys[key]
                try:
                    found[field] = convert(self, raw)
                except ValueError:
                    raise OptionError(f"unable to convert {raw} for {key}") from None
        return found

    def plain(self, raw: str) -> str:
        """A value as text, its quotes taken off."""
        return dequote(raw) if self.dialect is Dialect.SINCE_V48 else raw

    def strings(self, raw: str) -> list[str]:
        """A list of strings. Its elements keep their quotes (v48 and later)."""
        inner = raw.strip().strip("[]")
        return inner.split(",") if self.dialect is Dialect.UP_TO_V47 else split_commas(inner, self.dialect)


_DIGITS = re.compile(r"\+?[0-9]+")
_TOGGLES = {"": False, "on": True, "true": True, "off": False, "false": False}
_SHIFTS = {"K": 10, "M": 20, "G": 30}


def text(reader: Reader, raw: str) -> str:
    """Text as it stands, without its quotes."""
    return reader.plain(raw)


def strings(reader: Reader, raw: str) -> list[str]:
    """``[a,b]``."""
    return reader.strings(raw)


def number(reader: Reader, raw: str) -> int:
    """A decimal number."""
    return _integer(reader.plain(raw))


def toggle(_reader: Reader, raw: str) -> bool:
    """``on``, ``off``, ``true`` or ``false``, in any case."""
    try:
        return _TOGGLES[raw.lower()]
    except KeyError:
        raise ValueError(raw) from None


def size(reader: Reader, raw: str) -> int:
    """Bytes, with a binary suffix K, M or G."""
    value = reader.plain(raw).strip()
    return _integer(value.rstrip("KMG")) << _SHIFTS.get(value[-1:], 0)


def numbers(_reader: Reader, raw: str) -> list[int]:
    """``[0,2-4]``."""
    found: list[int] = []
    for item in raw.strip().strip("[]").split(","):
        first, dash, last = item.partition("-")
        start = _integer(first)
        end = _integer(last) if dash else start
        if dash and start >= end:
            raise ValueError(raw)
        found += range(start, end + 1)
    return found


def choice(*names: tuple[str, str]) -> Converter:
    """One word of several, in any case: pairs of the word and what it stands for."""
    one = exact(*names)

    def convert(reader: Reader, raw: str) -> str:
        return one(reader, raw.lower())

    return convert


def exact(*names: tuple[str, str]) -> Callable[[Reader, str], str]:
    """One word of several, in small letters."""
    table = dict(names)

    def convert(reader: Reader, raw: str) -> str:
        try:
            return table[reader.plain(raw)]
        except KeyError:
            raise ValueError(raw) from None

    return convert


def tuples(key: str, value: str, *, many: bool) -> Converter:
    """``[0@[1,2],3@4]`` as a list of two-field records."""

    def convert(reader: Reader, raw: str) -> list[dict[str, object]]:
        inner = raw.strip()
        if not (inner.startswith("[") and inner.endswith("]")):
            raise ValueError(raw)
        found: list[dict[str, object]] = []
        for part in split_commas(inner[1:-1], reader.dialect):
            first, at, second = part.partition("@")
            if not at:
                raise ValueError(raw)
            found.append(
                {key: _integer(first), value: numbers(reader, second) if many else _integer(second)}
            )
        return found

    return convert


def _integer(raw: str) -> int:
    if not _DIGITS.fullmatch(raw):
        raise ValueError(raw)
    return int(raw)
