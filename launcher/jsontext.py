# SPDX-License-Identifier: MIT
"""JSON as `json` reads and writes it, without what `json` imports: `re`, among others, 4 ms of a VM's start.

`_json` is the half of it that is written in C (Modules/_json.c), and does the work there, too. Its interface
is CPython's own affair: whatever it does not take, or no longer takes, goes to `json`, whose word is final.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class _Context:
    """What `json.JSONDecoder` is by default, as far as its scanner asks."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = float


def loads(data: bytes) -> Any:  # noqa: ANN401 (as json has it)
    """As `json.loads`. Raises `ValueError`, `RecursionError`."""
    try:
        from _json import make_scanner  # noqa: PLC0415 (see above)

        text = data.decode()
        value, end = make_scanner(_Context)(text, 0)  # type: ignore[arg-type]  # that is typeshed's error
    except Exception:  # noqa: BLE001 (CPython 3.11 says SystemError of what is malformed: json says what is wrong)
        end = -1
    if end >= 0 and end == len(text):
        return value
    import json  # noqa: PLC0415 (see above)

    return json.loads(data)


def dumps(value: object, *, sort_keys: bool = False, ensure_ascii: bool = True) -> str:
    """As `json.dumps`, without blanks. Raises what that does."""
    try:
        from _json import encode_basestring, encode_basestring_ascii, make_encoder  # noqa: PLC0415 (see above)

        quote = encode_basestring_ascii if ensure_ascii else encode_basestring
        encode = make_encoder({}, _unknown, quote, None, ":", ",", sort_keys, False, True)
        return "".join(encode(value, 0))
    except Exception:  # noqa: BLE001 (see above)
        import json  # noqa: PLC0415 (see above)

        return json.dumps(value, sort_keys=sort_keys, ensure_ascii=ensure_ascii, separators=(",", ":"))


def _unknown(_value: object) -> object:
    raise TypeError
