# SPDX-License-Identifier: MIT
"""The search for leaks knows a value whatever form it was brought into."""

from __future__ import annotations

import base64
import json
import re
import shlex
from urllib.parse import quote, quote_plus

import pytest

from tests.support.leaks import Search

TEXT = 'pass-4f1d99c07bb2e3a8\n"it\'s" \\ 100% é/+ fin-77aa01e5d0c94b63'
VALUE = TEXT.encode()
FORMS: dict[str, str | bytes] = {
    "plain": VALUE,
    "Base64": base64.b64encode(VALUE),
    "Base64, one byte before": base64.b64encode(b"A" + VALUE + b"Z"),
    "Base64, two bytes before": base64.b64encode(b"AB" + VALUE + b"YZ"),
    "Base64 for URLs": base64.urlsafe_b64encode(b"\xff\xff" + VALUE),
    "Base64 in lines": base64.encodebytes(VALUE),
    "hexadecimal": VALUE.hex(),
    "HEXADECIMAL": VALUE.hex().upper(),
    "URL": quote(TEXT, safe=""),
    "URL of a form": quote_plus(TEXT),
    "JSON": json.dumps({"a": TEXT}),
    "JSON with UTF-8": json.dumps({"a": TEXT}, ensure_ascii=False),
    "JSON of JSON": json.dumps(json.dumps(TEXT)),
    "Python's bytes": repr(VALUE),
    "Python's text": repr(TEXT),
    "a shell's word": shlex.quote(TEXT),
    "its first line": TEXT.partition("\n")[0],
    "its beginning": VALUE[:20],
    "its end": VALUE[-14:],
}


@pytest.mark.parametrize("form", FORMS)
def test_forms(form: str) -> None:
    """A value is found in this form, in the middle of something else."""
    made = FORMS[form]
    shown = made.encode() if isinstance(made, str) else made
    assert Search.of([VALUE]).in_text(b"the value is <" + shown + b">")


def test_nothing_else_is_found() -> None:
    """Neither other values nor a digest of it are taken for the value."""
    search = Search.of([VALUE])
    assert not search.in_text(VALUE[::-1] + b"pass- fin- 4f1d99c0 0123456789abcdef" * 1000)


def test_short_values_have_no_empty_form() -> None:
    """A value of a few bytes is looked for as it is, and does not make everything a leak."""
    assert Search.of([b"ab"]).in_text(b"-ab-")
    assert not Search.of([b"ab"]).in_text(b"-ba-")


def test_allowed_is_a_pattern_of_whole_paths() -> None:
    """By default, only the source and what PID 1 shows to a VM's unit may hold a value."""
    allowed = Search.of([VALUE]).allowed
    assert isinstance(allowed, re.Pattern)
    assert allowed.match("/run/secrets.d/7/api-key")
    assert allowed.match("/run/credentials/microvm@web.service/credferry_value.KEY")
    for path in (
        "/run/credentials/microvm@web.service/credferry_manifest",
        "/run/credentials/other.service/credferry_value.KEY",
        "/var/run/secrets.d/7/api-key",
    ):
        assert not allowed.match(path)
