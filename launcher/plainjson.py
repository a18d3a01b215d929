# SPDX-License-Identifier: MIT
"""JSON without an import of `json`, which loads `re` and slows a VM's start.

This module reads the part of JSON that `Manifest.to_bytes` writes: no blanks, no backslashes, no null, and
of numbers only 0, 1, 2 and so on. It leaves all other documents to `json`.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_WORDS: Final = {"true": True, "false": False}
_ESCAPES: Final = {code: f"\\u{code:04x}" for code in range(32)} | {
    ord('"'): '\\"',
    ord("\\"): "\\\\",
    ord("\n"): "\\n",
    ord("\r"): "\\r",
    ord("\t"): "\\t",
    ord("\f"): "\\f",
    ord("\b"): "\\b",
}


def dumps(value: object) -> str:
    """As `json.dumps` in its shortest form, with all letters as they are. Raises `TypeError`."""
    match value:
        case str():
            return f'"{value.translate(_ESCAPES)}"'
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case list():
            return f"[{','.join(map(dumps, value))}]"
        case dict():
            return "{" + ",".join(f"{dumps(name)}:{dumps(each)}" for name, each in value.items()) + "}"
        case _:
            raise TypeError(f"cannot write a {type(value).__name__} as JSON")


def loads(data: bytes) -> object:
    """As `json.loads`: the value of a document. Raises `ValueError`, `RecursionError`."""
    try:
        text = data.decode()
        value, end = _value(text, 0)
        if end == len(text):
            return value
    except (ValueError, IndexError, RecursionError):
        pass
    import json  # noqa: PLC0415 (a manifest does not come here)

    found: object = json.loads(data)
    return found


# Each of these functions reads what begins at an index of the text. It returns that, and the index after it.
# Where it finds something else, it raises ValueError, or IndexError at the end of the text.


def _value(text: str, at: int) -> tuple[object, int]:
    match text[at]:
        case '"':
            return _string(text, at)
        case "{":
            return _object(text, at)
        case "[":
            return _list(text, at)
        case _:
            return _word(text, at)


def _object(text: str, at: int) -> tuple[dict[str, object], int]:
    values: dict[str, object] = {}
    at = _after(text, at, "{")
    if text[at] == "}":
        return values, at + 1
    while True:
        name, at = _string(text, at)
        values[name], at = _value(text, _after(text, at, ":"))
        if text[at] == "}":
            return values, at + 1
        at = _after(text, at, ",")


def _list(text: str, at: int) -> tuple[list[object], int]:
    values: list[object] = []
    at = _after(text, at, "[")
    if text[at] == "]":
        return values, at + 1
    while True:
        value, at = _value(text, at)
        values.append(value)
        if text[at] == "]":
            return values, at + 1
        at = _after(text, at, ",")


def _string(text: str, at: int) -> tuple[str, int]:
    start = _after(text, at, '"')
    end = text.index('"', start)
    string = text[start:end]
    if "\\" in string or not string.isprintable():
        raise ValueError
    return string, end + 1


def _word(text: str, at: int) -> tuple[bool | int, int]:
    end = at
    while text[end : end + 1].isalnum():
        end += 1
    word = text[at:end]
    if word in _WORDS:
        return _WORDS[word], end
    number = int(word)
    if str(number) != word:
        raise ValueError
    return number, end


def _after(text: str, at: int, char: str) -> int:
    if text[at] != char:
        raise ValueError
    return at + 1
