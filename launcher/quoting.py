# SPDX-License-Identifier: MIT
"""Decides whether an answer of cloud-hypervisor may be shown, or may hold part of a value; pure.

An answer can quote the VM's configuration, in any form: raw, escaped (JSON, Rust's ``{:?}``, percent), in
Base64 or in hex, in part or in whole. In doubt, the answer is not shown.
"""

from __future__ import annotations

import binascii
import json
import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Final

    from credferry.launcher.handoff import Secret

_PART: Final = 6
"""An answer is not shown if so many characters of it occur in a value, one after the other."""
_LEAST: Final = 4
"""Characters of Base64 that still tell something: fewer of them occur in any text."""
_ANSWER_MAX: Final = 16 << 10
_SHOWN_MAX: Final = 1000
_ROUNDS: Final = 8
_ESCAPE: Final = re.compile(
    r"\\u(?P<high>[dD][89abAB][0-9a-fA-F]{2})\\u(?P<low>[dD][c-fC-F][0-9a-fA-F]{2})"
    r"|\\u\{(?P<braced>[0-9a-fA-F]{1,6})\}|\\u(?P<unicode>[0-9a-fA-F]{4})"
    r"|(?:\\x|%)(?P<byte>[0-9a-fA-F]{2})|\\(?P<plain>.)",
    re.DOTALL,
)
_CONTROLS: Final = {"n": "\n", "r": "\r", "t": "\t", "0": "\0", "b": "\b", "f": "\f"}
_BETWEEN: Final = re.compile(rb"0x|[\s,:;\-\[\]]+")
_SPACE: Final = re.compile(rb"\s+")
_NUMBERS: Final = re.compile(rb"[0-9]{1,3}(?:\s*,\s*[0-9]{1,3}){2,}")
_BYTE: Final = 256


def shown(answer: bytes, values: Sequence[Secret]) -> str | None:
    """The answer in one line, or None if it may hold part of a value."""
    # In bytes, `json.loads` would take UTF-16 and UTF-32 as well, in which no value is found.
    text = answer.decode(errors="replace")
    if "\0" in text or _may_hold(answer, values):
        return None
    try:
        links = json.loads(text)
    except (ValueError, RecursionError):
        links = None
    if isinstance(links, list) and all(isinstance(link, str) for link in links):
        text = ": ".join(links)  # cloud-hypervisor answers with the chain of its errors
    return "".join(char if char.isprintable() else " " for char in text[:_SHOWN_MAX]).strip()


def _may_hold(answer: bytes, values: Sequence[Secret]) -> bool:
    if len(answer) > _ANSWER_MAX:
        return True
    read = _readings(answer)
    if read is None:
        return True
    parts = {text[at : at + _PART] for text in read for at in range(len(text) - _PART + 1)}
    return any(
        any(form in text for text in read)
        if len(form) < _PART
        else any(form[at : at + _PART] in parts for at in range(len(form) - _PART + 1))
        for value in values
        for form in _forms(value.reveal())
    )


def _forms(value: bytes) -> Iterator[bytes]:
    """The value as an answer may write it, in small letters. A value of blanks has no form."""
    if not value.strip():
        return
    for raw in {value.strip(), _SPACE.sub(b"", value)}:
        yield raw.lower()
    yield value.hex().encode()
    # Within longer data, Base64 of the same bytes has three forms. What depends on neighbours is cut.
    for before, cut in ((0, 0), (1, 2), (2, 3)):
        encoded = binascii.b2a_base64(bytes(before) + value, newline=False).rstrip(b"=").lower()
        if not before:
            yield encoded
        own = encoded[cut : (before + len(value)) * 8 // 6]
        if len(own) >= _LEAST:
            yield own


def _readings(answer: bytes) -> set[bytes] | None:
    """The answer, and what it becomes without its escapes, in small letters; None if that has no end."""
    text = answer.decode(errors="surrogateescape")
    seen: set[bytes] = set()
    for _ in range(_ROUNDS):
        data = _data(text)
        seen |= {data, _SPACE.sub(b"", data), _BETWEEN.sub(b"", data), data.translate(_URL_SAFE)}
        seen |= {_of_numbers(found[0]) for found in _NUMBERS.finditer(data)}
        again = _ESCAPE.sub(_unescaped, text)
        if again == text:
            return {reading.lower() for reading in seen}
        text = again
    return None


_URL_SAFE: Final = bytes.maketrans(b"-_", b"+/")


def _unescaped(found: re.Match[str]) -> str:
    if found["high"]:
        high, low = int(found["high"], 16) - 0xD800, int(found["low"], 16) - 0xDC00
        return chr(0x10000 + (high << 10) + low)
    if found["byte"]:
        return bytes.fromhex(found["byte"]).decode(errors="surrogateescape")
    if found["plain"] is not None:
        return _CONTROLS.get(found["plain"], found["plain"])
    number = int(found["braced"] or found["unicode"], 16)
    is_char = number <= 0x10FFFF and not 0xD800 <= number < 0xE000  # noqa: PLR2004 (Unicode's bounds)
    return chr(number) if is_char else "?"


def _data(text: str) -> bytes:
    return text.encode(errors="surrogateescape")


def _of_numbers(listed: bytes) -> bytes:
    """The bytes of a list like ``115, 101, 99``."""
    numbers = [int(number) for number in listed.split(b",")]
    return bytes(number for number in numbers if number < _BYTE)
