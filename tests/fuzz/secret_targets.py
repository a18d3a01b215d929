# SPDX-License-Identifier: MIT
"""What the agent reads within secrets: fields of files, and certificates with their keys."""

from __future__ import annotations

import json
from typing import Any, Final

from credferry.agent.config.secrets import Format
from credferry.agent.reconcile.pairs import Apart, Together, Uncheckable, belong
from credferry.agent.source.fields import DOCUMENT_MAX, parse
from credferry.agent.source.reading import Problem
from credferry.launcher.handoff import Secret
from tests.fuzz.target import Target, shows_value

_NAMES: Final = ("CERT", "KEY")
_BETWEEN: Final = b"\n===\n"


def fields(data: bytes) -> None:
    """A field of a file: a first line with the format and the field's name, and the file's text."""
    line, _, text = data.partition(b"\n")
    kind, _, field = line.decode(errors="replace").partition(" ")
    form = {each.value: each for each in Format}.get(kind)
    if form is None:
        return
    document = parse(Secret(text), form)
    if isinstance(document, Problem):
        return
    assert len(text) <= DOCUMENT_MAX
    assert not shows_value(repr(document)), "the document shows itself"
    found = document.field(field)
    if isinstance(found, Problem):
        return
    assert not shows_value(repr(found)), "the value shows itself"
    if form is Format.JSON:
        value = _of_json(json.loads(text, parse_int=str, parse_float=str), field)
        if value is not None:
            assert found.reveal() == value.encode(), "another field was taken"


def _of_json(here: Any, field: str) -> str | None:  # noqa: ANN401 (a JSON document)
    """The same by the shortest code; None where that does not tell, as with a backslash."""
    if "\\" in field:
        return None
    for part in field.split("."):
        here = here[int(part)] if isinstance(here, list) else here[part]
    return {True: "true", False: "false"}[here] if isinstance(here, bool) else str(here)


def pairs(data: bytes) -> None:
    """A certificate and a private key, with ``===`` between them: any bytes have an answer, at once."""
    certificate, _, key = data.partition(_BETWEEN)
    both = Secret(certificate), Secret(key)
    bond = belong(_NAMES, *both)
    assert belong(_NAMES, *both) == bond, "the same two have two answers"
    match bond:
        case Apart(reason) | Uncheckable(reason):
            assert reason
            assert not shows_value(reason), "the reason shows a value"
        case Together():
            # Nothing that is in the key alone made it fit: a certificate is of one key. One file may hold
            # both.
            assert b"PRIVATE KEY" in certificate or belong(_NAMES, both[0], both[0]) != bond


TARGETS: Final = (
    Target(
        "fields",
        fields,
        ("json ", "yaml ", "dotenv ", "a.b", '{"a": ', "a:\n  b: ", "A=", "!!str ", "&x ", "*x", "<<: "),
    ),
    Target(
        "pairs",
        pairs,
        (
            "-----BEGIN CERTIFICATE-----\n",
            "-----END CERTIFICATE-----\n",
            "-----BEGIN PRIVATE KEY-----\n",
            "-----BEGIN EC PRIVATE KEY-----\n",
            "-----BEGIN OPENSSH PRIVATE KEY-----\n",
            "\n===\n",
        ),
        length_max=4096,
    ),
)
