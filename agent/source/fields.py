# SPDX-License-Identifier: MIT
"""Takes one field out of a JSON, YAML or dotenv file. No error holds a value.

A number or a truth value is taken as it is written. Nothing is expanded: no variables in dotenv, and no
tags in YAML.
"""

from __future__ import annotations

import enum
import io
import json
from dataclasses import dataclass
from typing import Any, Final

from credferry.agent.config.secrets import Format, field_parts
from credferry.agent.source.reading import Problem
from credferry.launcher.handoff import Secret

DOCUMENT_MAX: Final = 64 << 10
"""Limit for a file of fields, in bytes. YAML of this size is read within a second."""
_DEPTH_MAX: Final = 64
_TAGS: Final = {
    f"tag:yaml.org,2002:{each}" for each in ("str", "int", "float", "bool", "timestamp", "value")
}
_NULL: Final = "tag:yaml.org,2002:null"


class _Odd(enum.Enum):
    """Stands in a document for what is no value."""

    TWICE = enum.auto()


@dataclass(frozen=True, slots=True)
class ParsedFile:
    """A parsed file. Its text never shows."""

    form: Format
    content: Any

    def __repr__(self) -> str:
        return f"ParsedFile({self.form.value}, …)"

    def field(self, name: str) -> Secret | Problem:
        """The value of a field, such as ``db.password``; or why there is none. Raises nothing."""
        here = self.content
        for part in field_parts(name, self.form):
            here = _step(here, part)
            if isinstance(here, Problem):
                return here
        return _leaf(here)


def parse(value: Secret, form: Format) -> ParsedFile | Problem:
    """Parse a file's content; or say why it cannot be parsed. Raises nothing."""
    content = value.reveal()
    if len(content) > DOCUMENT_MAX:
        return Problem.DOCUMENT_TOO_LARGE
    try:
        text = content.decode()
        match form:
            case Format.JSON:
                return ParsedFile(form, _json(text))
            case Format.YAML:
                return ParsedFile(form, _yaml(text))
            case Format.DOTENV:
                return ParsedFile(form, _dotenv(text))
    except Exception:  # noqa: BLE001 (parsers raise many kinds, and their texts quote the document)
        return Problem.MALFORMED


def _json(text: str) -> Any:  # noqa: ANN401 (a JSON document)
    def constant(_text: str) -> Any:  # noqa: ANN401 (never returns)
        raise ValueError

    return json.loads(
        text, object_pairs_hook=_table, parse_int=str, parse_float=str, parse_constant=constant
    )


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        found[key] = _Odd.TWICE if key in found else value
    return found


def _yaml(text: str) -> Any:  # noqa: ANN401 (a node; aliases stay references, so no document grows)
    import yaml  # noqa: PLC0415 (for hosts that use it)

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # not each build of PyYAML has libyaml's
    try:
        # Composing calls itself for each level, in C. A file of brackets would end the process.
        depth = 0
        for event in yaml.parse(text, loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(
                event, yaml.CollectionEndEvent
            )
            if depth > _DEPTH_MAX:
                raise ValueError
        return yaml.compose(text, loader)
    except yaml.YAMLError:
        raise ValueError from None  # its text quotes the document


def _dotenv(text: str) -> dict[str, Any]:
    from dotenv.parser import parse_stream  # noqa: PLC0415 (for hosts that use it)

    found: dict[str, Any] = {}
    for each in parse_stream(io.StringIO(text)):
        if each.error:
            raise ValueError
        if each.key is not None:  # else a comment; of two lines the last one counts, as in a shell
            found[each.key] = each.value
    return found


def _step(here: Any, part: str) -> Any:  # noqa: ANN401 (a document's parts)
    """What a part of a field's name leads to; a `Problem` where it leads nowhere."""
    items = _items(here)
    if isinstance(here, list) or _kind(here) == "sequence":
        is_index = part.isascii() and part.isdigit() and len(part) <= len(str(len(items)))
        return items[int(part)] if is_index and int(part) < len(items) else Problem.NO_FIELD
    found = items.get(part, Problem.NO_FIELD) if isinstance(items, dict) else Problem.NO_FIELD
    return Problem.FIELD_TWICE if found is _Odd.TWICE else found


def _items(here: Any) -> Any:  # noqa: ANN401 (see above)
    match _kind(here):
        case "sequence":
            return here.value
        case "mapping":
            pairs = ((key.value, value) for key, value in here.value if _kind(key) == "scalar")
            return _table(list(pairs))
        case _:
            return here


def _leaf(here: Any) -> Secret | Problem:  # noqa: ANN401 (see above)
    if _kind(here) == "scalar":
        if here.tag == _NULL:
            return Problem.EMPTY
        here = here.value if here.tag in _TAGS else here
    match here:
        case None | "":
            return Problem.EMPTY
        case bool():
            return Secret(b"true" if here else b"false")
        case str():
            try:
                return Secret(here.encode())
            except UnicodeEncodeError:  # half of a character, as JSON can have it
                return Problem.NOT_A_TEXT
        case _:
            return Problem.NOT_A_TEXT


def _kind(here: Any) -> str:  # noqa: ANN401 (see above)
    """Which kind of YAML's nodes this is; empty for a value of JSON or dotenv."""
    kind: str | None = getattr(here, "id", None)
    return kind or ""
