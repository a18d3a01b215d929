# SPDX-License-Identifier: MIT
"""Which answers of cloud-hypervisor the launcher shows: what it really answers, and nothing of a value."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from credferry.launcher.handoff import Secret
from credferry.launcher.quoting import shown

from .conftest import ROOT, sealed

if TYPE_CHECKING:
    from collections.abc import Callable

ANSWERS: list[dict[str, Any]] = json.loads(
    (ROOT / "tests/data/cloud-hypervisor-v53-answers.json").read_text()
)["answers"]
PEM = (
    b"-----BEGIN PRIVATE KEY-----\n"
    + base64.encodebytes(bytes(range(7, 250)))
    + b"-----END PRIVATE KEY-----\n"
)
VALUES = (
    Secret(b"correct horse battery staple"),
    Secret(b'p\xc3\xa4ss"w\\rd\n\xf0\x9f\x94\x91 of %41'),
    Secret(bytes(range(256))),
    Secret(PEM),
    Secret(b"4711"),
    Secret(sealed()),
)
"""Words, characters that are escaped, bytes that are no text, a key in lines, a PIN, and a sealed one."""


def chain(*links: str) -> bytes:
    """An answer as cloud-hypervisor forms it: the links of its error's chain."""
    return json.dumps(["Error from API", *links]).encode()


def text_of(value: bytes) -> str:
    """A value as lossy UTF-8."""
    return value.decode(errors="replace")


def rust_debug(value: bytes) -> str:
    """A string as Rust's ``{:?}`` writes it, with all but ASCII escaped."""
    return "".join(
        char if char.isascii() and char.isprintable() and char not in '"\\' else f"\\u{{{ord(char):x}}}"
        for char in text_of(value)
    )


def base64_of(value: bytes) -> str:
    """A value in Base64, as an OEM string holds it."""
    return base64.b64encode(value).decode()


FORMS: dict[str, Callable[[bytes], bytes]] = {
    "as it is": lambda value: b"invalid value: " + value,
    "in a chain": lambda value: chain("invalid value", text_of(value)),
    "in small letters": lambda value: chain(text_of(value).lower()),
    "quoted twice": lambda value: chain(json.dumps(json.dumps(text_of(value)))),
    "as Rust shows a string": lambda value: chain(f'got "{rust_debug(value)}"'),
    "percent": lambda value: chain(quote(value)),
    "percent, small": lambda value: chain("".join(f"%{byte:02x}" for byte in value)),
    "Base64": lambda value: chain(f"K={base64_of(value)}"),
    "Base64 in lines": lambda value: chain(base64.encodebytes(value).decode()),
    "Base64 for URLs": lambda value: chain(base64.urlsafe_b64encode(value).decode()),
    "Base64 of more": lambda value: chain(base64_of(b"K=" + value + b",")),
    "Base64 of still more": lambda value: chain(base64_of(b"KK=," + value + b",")),
    "hex": lambda value: chain(value.hex()),
    "hex, large": lambda value: chain(value.hex().upper()),
    "hex with colons": lambda value: chain(value.hex(":")),
    "hex in a list": lambda value: chain(", ".join(f"0x{byte:02x}" for byte in value)),
    "numbers": lambda value: chain(str(list(value))),
    "escaped bytes": lambda value: chain("".join(f"\\x{byte:02x}" for byte in value)),
}


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: answer["case"])
def test_what_cloud_hypervisor_really_answers_is_shown(answer: dict[str, Any]) -> None:
    """Its whole chain of errors, in one line, although the VM has secrets."""
    assert shown(answer["body"].encode(), VALUES) == ": ".join(json.loads(answer["body"]))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("value", VALUES, ids=["words", "escapes", "bytes", "pem", "pin", "sealed"])
def test_an_answer_with_a_value_is_not_shown(form: str, value: Secret) -> None:
    """Whatever form the value has in it."""
    assert shown(FORMS[form](value.reveal()), VALUES) is None


@pytest.mark.parametrize("form", ["as it is", "in a chain", "quoted twice", "Base64", "hex", "percent"])
@pytest.mark.parametrize("cut", [slice(0, 9), slice(3, 12), slice(-9, None)], ids=["head", "middle", "tail"])
def test_an_answer_with_part_of_a_value_is_not_shown(form: str, cut: slice) -> None:
    """An answer may be cut where it is too long: nine bytes are enough."""
    part = VALUES[0].reveal()[cut]
    assert shown(FORMS[form](part), VALUES) is None


def test_base64_that_was_cut_is_not_shown() -> None:
    """Six characters of it, at any place."""
    whole = base64_of(VALUES[0].reveal())
    for at in range(len(whole.rstrip("=")) - 5):
        assert shown(chain(whole[at : at + 6]), VALUES) is None
    assert shown(chain(whole[:5]), VALUES) is not None


def test_in_doubt_an_answer_is_not_shown() -> None:
    """It is too long to look at, or its escapes have no end."""
    escaped = "x"
    for _ in range(12):
        escaped = escaped.replace("\\", "\\\\") + "\\u0041"
    assert shown(chain(escaped), ()) is None
    assert shown(b"x" * ((16 << 10) + 1), ()) is None
    assert shown(b"x" * 2000, ()) == "x" * 1000


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_an_answer_in_another_encoding_is_not_shown(encoding: str) -> None:
    """JSON may be written so, and cloud-hypervisor does not: the bytes of a value are not found in it."""
    quoted = json.dumps([VALUES[0].reveal().decode()]).encode(encoding)
    assert shown(quoted, VALUES) is None


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b"", ""),
        (
            b'{ "error": "Invalid request.\nAll will be dropped." }',
            '{ "error": "Invalid request. All will be dropped." }',
        ),
        (b"\xff\x1b[31m", "\ufffd [31m"),
        (b'["a", 1]', '["a", 1]'),
        (b"[" * 10_000, "[" * 1000),
    ],
)
def test_another_form_of_answer_is_shown_as_it_is(answer: bytes, text: str) -> None:
    """In one line, without characters that change a terminal."""
    assert shown(answer, VALUES) == text


@pytest.mark.parametrize("value", [b"", b"\n", b"  "])
def test_a_value_of_blanks_hides_nothing(value: bytes) -> None:
    """There is nothing to hide."""
    assert shown(chain("VM is not created"), (Secret(value),)) == "Error from API: VM is not created"
