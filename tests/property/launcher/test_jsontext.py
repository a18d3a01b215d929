# SPDX-License-Identifier: MIT
"""The launcher's JSON is `json`'s: the same values, the same text, the same refusals."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from launcher import jsontext
from launcher.handoff import Channel

if TYPE_CHECKING:
    from collections.abc import Callable

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.sampled_from(Channel),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)
BROKEN = [b"", b"{", b"[1] ", b" [1]", b"[1]x", b'"\n"', b'{"a":\xff}', b"\xef\xbb\xbf[1]", b"[" * 99_999]
ROOT = Path(__file__).parents[3]


def said(what: Callable[[], object]) -> tuple[object, object]:
    """What comes of it: a value, or the kind of the error and its text."""
    try:
        return None, what()
    except (ValueError, RecursionError, TypeError) as error:
        return type(error), str(error)


@given(VALUES, st.booleans(), st.booleans())
def test_the_text_is_that_of_json(value: object, sort_keys: bool, ensure_ascii: bool) -> None:
    """To the byte, whatever the value; and it comes back."""
    text = jsontext.dumps(value, sort_keys=sort_keys, ensure_ascii=ensure_ascii)
    assert text == json.dumps(value, sort_keys=sort_keys, ensure_ascii=ensure_ascii, separators=(",", ":"))
    with contextlib.suppress(UnicodeEncodeError):
        assert jsontext.loads(text.encode()) == json.loads(text)


@given(st.one_of(st.binary(max_size=20), VALUES.map(lambda value: json.dumps(value).encode()[:-1])))
@example(b"NaN")
@example(b'{"a":1,"a":[Infinity,-1.5e3]}')
def test_what_is_malformed_is_refused_as_json_does(data: bytes) -> None:
    """The same error with the same text, or the same value."""
    assert repr(said(lambda: jsontext.loads(data))) == repr(said(lambda: json.loads(data)))


@pytest.mark.parametrize("data", BROKEN, ids=lambda data: repr(data[:8]))
def test_an_interpreter_without_json_refuses_likewise(data: bytes) -> None:
    """Where `json` was not imported before: its C half alone would end in SystemError on Python 3.11."""
    code = (
        f"import sys; sys.path[:0] = [{str(ROOT)!r}]; from launcher import jsontext\n"
        "assert 'json' not in sys.modules\n"
        "try: print(jsontext.loads(sys.stdin.buffer.read()))\n"
        "except (ValueError, RecursionError) as error: print(type(error).__name__)\n"
    )
    done = subprocess.run([sys.executable, "-IS", "-c", code], input=data, capture_output=True, check=True)
    kind, value = said(lambda: json.loads(data))
    assert done.stdout.decode().strip() == (kind.__name__ if isinstance(kind, type) else str(value))


@pytest.mark.parametrize("value", [{1: 2, "a": 3}, {"a": object()}, {(): 1}, float("nan")])
def test_what_cannot_be_written_is_refused_as_json_does(value: object) -> None:
    """Keys that cannot be sorted, values that JSON has not: the same error, or the same text."""
    mine = said(lambda: jsontext.dumps(value, sort_keys=True))
    assert mine == said(lambda: json.dumps(value, sort_keys=True, separators=(",", ":")))
