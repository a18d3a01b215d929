# SPDX-License-Identifier: MIT
"""What an attacker who guesses would compute of likely values, without any key."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import zlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

LIKELY: Final = (b"hunter2", b"password", b"123456", b"changeme", b"secret", b"admin", b"letmein")
"""Values that somebody would try first. A test publishes the first of them."""
DIGITS_MIN: Final = 8
"""Shorter runs of hexadecimal digits match by chance."""
DIGITS_MAX: Final = 16
"""So many digits are no chance."""

_HASHES: Final = ("md5", "sha1", "sha224", "sha256", "sha384", "sha512", "sha3_256", "blake2b", "blake2s")
_KEYS: Final = (
    b"",
    b"credferry",
    b"credferry/fingerprint",
    b"credferry/digest",
    b"fingerprint",
    b"digest",
    bytes(32),
)
_TOKEN: Final = re.compile(rf"[0-9a-f]{{{DIGITS_MIN},}}", re.IGNORECASE)


def guesses(labels: Iterable[str], values: Iterable[bytes] = LIKELY) -> set[str]:
    """The first digits of every digest that needs no key: of each value, alone and behind each label.

    Each has all lengths from `DIGITS_MIN` to `DIGITS_MAX`: some texts show less of a digest than others.

    ``labels`` are names that stand beside the value: secrets, credentials, VMs.
    """
    found = set()
    parts = [b"", *(name.encode() + end for name in labels for end in (b"", b"\0", b"=", b":", b"/", b"\n"))]
    for value in values:
        for form in (value, value + b"\n", base64.b64encode(value), value.hex().encode()):
            found |= _starts(format(zlib.crc32(form), "08x"))
            for part in parts:
                content = part + form
                digests = [hashlib.new(name, content).hexdigest() for name in _HASHES]
                digests += [hmac.digest(key, content, "sha256").hex() for key in _KEYS]
                found |= {start for digest in digests for start in _starts(digest)}
    return found


def matches(text: str, guessed: set[str]) -> list[str]:
    """The digests in a text that a guess has found."""
    return [token for token in _TOKEN.findall(text) if token.lower()[:DIGITS_MAX] in guessed]


def _starts(digest: str) -> set[str]:
    return {digest[:digits] for digits in range(DIGITS_MIN, DIGITS_MAX + 1)}
