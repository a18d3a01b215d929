# SPDX-License-Identifier: MIT
"""HMAC-SHA256 without an import of `hmac`, which loads OpenSSL and slows a VM's start."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_BLOCK: Final = 64
"""Bytes that SHA-256 takes at a time (FIPS 180-4)."""
_INNER: Final = bytes(byte ^ 0x36 for byte in range(256))
_OUTER: Final = bytes(byte ^ 0x5C for byte in range(256))


def digest(key: bytes, message: bytes) -> bytes:
    """The HMAC (RFC 2104) of a message under a key of at most 64 bytes."""
    padded = key.ljust(_BLOCK, b"\0")
    inner = _sha256(padded.translate(_INNER) + message)
    return _sha256(padded.translate(_OUTER) + inner)


def _sha256(data: bytes) -> bytes:
    # These two modules are CPython's own. An interpreter may be built without them.
    try:
        from _sha256 import sha256  # type: ignore[import-not-found]  # noqa: PLC0415 (up to 3.11)
    except ImportError:
        try:
            from _sha2 import sha256  # type: ignore[import-not-found]  # noqa: PLC0415 (since 3.12)
        except ImportError:
            from hashlib import sha256  # noqa: PLC0415 (takes the time of OpenSSL)
    hashed: bytes = sha256(data).digest()
    return hashed
