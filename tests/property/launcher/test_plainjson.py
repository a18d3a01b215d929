# SPDX-License-Identifier: MIT
"""The launcher's own JSON, against Python's."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from credferry.launcher import plainjson

if TYPE_CHECKING:
    from collections.abc import Callable

TEXT = st.text() | st.text('ab"\\\n\0\x7f é')
WRITTEN: st.SearchStrategy[Any] = st.recursive(
    TEXT | st.booleans() | st.integers(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
READ: st.SearchStrategy[Any] = st.recursive(
    TEXT | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.none(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
PLAIN = b'{"flag":true,"list":["a",{}],"number":257,"other":[],"zero":0}'


def outcome(loads: Callable[[bytes], object], data: bytes) -> tuple[str, object]:
    """The repr of what a reader returns, which tells 1 from True, or the kind of its error."""
    try:
        return "read", repr(loads(data))
    except (ValueError, RecursionError) as error:
        return "refused", type(error)


@given(WRITTEN)
@example({"a": [True, 1, -1, 'q"\\', "\x00\x1f\x7f\u2028\U0001f600"], "": {}})
def test_it_writes_what_json_writes(value: object) -> None:
    """In the shortest form."""
    assert plainjson.dumps(value) == json.dumps(value, ensure_ascii=False, separators=(",", ":"))


@pytest.mark.parametrize("value", [None, 1.0, b"", ("a",), [{"a": object()}]])
def test_it_does_not_write_what_a_request_never_has(value: object) -> None:
    """Python's own writes some of these, each in a way that has to be known."""
    with pytest.raises(TypeError):
        plainjson.dumps(value)


@given(READ, st.booleans(), st.booleans(), st.sampled_from(["utf-8", "utf-16", "utf-8-sig"]))
def test_it_reads_what_json_reads(value: object, ascii_only: bool, blanks: bool, encoding: str) -> None:
    """Whatever the document's form."""
    separators = (" , ", "\t:\n") if blanks else (",", ":")
    text = json.dumps(value, ensure_ascii=ascii_only, separators=separators)
    data = text.encode(encoding, errors="surrogatepass")
    assert outcome(plainjson.loads, data) == outcome(json.loads, data)


@given(
    st.integers(0, len(PLAIN)),
    st.integers(0, 3),
    st.binary(max_size=3) | st.sampled_from([b'"', b",", b"}", b"]"]),
)
@example(0, 0, b"[" * 100_000)
@example(0, 0, b"\xef\xbb\xbf")
@example(PLAIN.index(b"257"), 3, b"0257")
@example(PLAIN.index(b"257"), 3, b"-0")
@example(PLAIN.index(b"257"), 3, "\u0663".encode())
@example(PLAIN.index(b"257"), 3, b"2_5")
@example(PLAIN.index(b"257"), 3, b"9" * 5000)
@example(PLAIN.index(b"257"), 3, b"NaN")
@example(PLAIN.index(b"257"), 3, b'1,"number":2')
@example(PLAIN.index(b"]"), 0, b",")
@example(PLAIN.index(b"}"), 0, b",")
@example(len(PLAIN), 0, b"\0")
def test_a_damaged_document_is_read_or_refused_as_by_json(at: int, length: int, damage: bytes) -> None:
    """Wherever something is left out or put in."""
    data = PLAIN[:at] + damage + PLAIN[at + length :]
    assert outcome(plainjson.loads, data) == outcome(json.loads, data)


def test_a_plain_document_is_read_without_json() -> None:
    """Or the module would be for nothing."""
    code = (
        "import sys; from credferry.launcher import plainjson; "
        f"plainjson.loads({PLAIN!r}); plainjson.dumps({{}}); print('json' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "False\n"
