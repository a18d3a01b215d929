# SPDX-License-Identifier: MIT
"""Writes and reads systemd's encrypted-credential format with the host key; pure.

Source of the format: systemd, src/shared/creds-util.{c,h}; the same bytes in 252, 257 and main of 2026.
All integers are little-endian::

    16  id of the key type
     4  key size     32
     4  block size    1
     4  IV size      12
     4  tag size     16
    12  IV
     4  padding to a multiple of 8           -- up to here: the AAD of AES-256-GCM
        ciphertext of: le64 timestamp, le64 not-after, le32 name size, name, padding to 8, payload
    16  tag

On disk it is Base64, a line feed after every 79 characters.
"""

from __future__ import annotations

import base64
import binascii
import os
import struct
import time
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from credferry.agent.errors import SealError
from credferry.agent.sealing.kinds import HOST, ID_SIZE, KINDS

if TYPE_CHECKING:
    from credferry.agent.sealing.keys import CredentialKey

PLAINTEXT_MAX = 1 << 20
"""Bytes: CREDENTIAL_SIZE_MAX."""
SEALED_MAX = PLAINTEXT_MAX + (128 << 10)
"""Bytes once decoded: CREDENTIAL_ENCRYPTED_SIZE_MAX."""
NEVER = 2**64 - 1
"""A not-after (or a timestamp) of USEC_INFINITY."""

_HOST = next(each for each, kind in KINDS.items() if kind is HOST)

_SIZES = struct.Struct("<IIII")
_METADATA = struct.Struct("<QQI")
_KEY_SIZE, _BLOCK_SIZE, _IV_SIZE, _TAG_SIZE = 32, 1, 12, 16
_AAD_SIZE = 48
_LINE = 79
_NAME_MAX = 255


def seal(
    value: bytes,
    *,
    name: str,
    key: CredentialKey,
    timestamp: int | None = None,
    not_after: int = NEVER,
) -> bytes:
    """Seal a value under a name, as ``systemd-creds encrypt --with-key=host --name=NAME`` does.

    ``timestamp`` and ``not_after`` are microseconds since 1970; the timestamp is now unless given. Returns
    Base64 in lines of 79 characters. Raises `SealError` for a name that systemd does not accept, a value
    over 1 MiB, or a not-after that is not after the timestamp.
    """
    require_size(value, name)
    if not is_valid_name(name):
        raise SealError(
            f"{name!r} is not a credential name",
            hint="use 1 to 255 printable ASCII characters without '/' and ':'",
        )
    if timestamp is None:
        timestamp = time.time_ns() // 1000
    if not_after <= timestamp:
        raise SealError(f"credential {name!r} would expire before it is sealed", hint="use a later expiry")
    encoded_name = name.encode("ascii")
    iv = os.urandom(_IV_SIZE)
    header = _header(iv)
    plaintext = _pad8(_METADATA.pack(timestamp, not_after, len(encoded_name)) + encoded_name) + value
    ciphertext = AESGCM(key.aes_key).encrypt(iv, plaintext, header)
    return _wrap(header + ciphertext)


def unseal(blob: bytes, *, name: str | None, key: CredentialKey, now: int | None = None) -> bytes:
    """Open what `seal` or ``systemd-creds encrypt --with-key=host`` made.

    ``name`` must equal the name inside, unless the name inside is empty. None skips this check. ``now`` is
    in microseconds since 1970. Raises `SealError` on anything that systemd refuses, and on null-key blobs,
    which systemd accepts.
    """
    label = f"credential {name!r}" if name is not None else "a credential"
    data = _decode(blob, label)
    _check_header(data, label)
    iv = data[32 : 32 + _IV_SIZE]
    try:
        plaintext = AESGCM(key.aes_key).decrypt(iv, data[_AAD_SIZE:], data[:_AAD_SIZE])
    except InvalidTag:
        raise SealError(
            f"{label} does not open with this key: it was changed, cut off, or sealed with another key",
            hint="seal it again on this host",
        ) from None
    timestamp, not_after, name_size = _METADATA.unpack_from(plaintext)
    value_at = (_METADATA.size + name_size + 7) & ~7
    if value_at > len(plaintext):
        raise SealError(f"{label} is malformed", hint="seal it again")
    if timestamp != NEVER and timestamp >= not_after:
        raise SealError(
            f"{label} has a creation time that is not before its expiry time", hint="seal it again"
        )
    embedded = plaintext[_METADATA.size : _METADATA.size + name_size].decode("ascii", "replace")
    if embedded and not is_valid_name(embedded):
        raise SealError(f"{label} contains an invalid name", hint="seal it again")
    if embedded and name is not None and embedded != name:
        raise SealError(f"{label} was sealed under the name {embedded!r}", hint="use it under that name")
    if not_after < (time.time_ns() // 1000 if now is None else now):
        raise SealError(
            f"{label} has expired: its not-after time has passed",
            hint="seal it again, with a later --not-after=, or with none",
        )
    return plaintext[value_at:]


def require_size(value: bytes, name: str) -> None:
    """Raise `SealError` for a value that is larger than systemd takes."""
    if len(value) > PLAINTEXT_MAX:
        raise SealError(
            f"credential {name!r} is larger than systemd's limit of {PLAINTEXT_MAX} bytes",
            hint="publish a smaller value, such as a reference to it; or split it",
        )


def one_line(blob: bytes) -> bytes:
    """The same sealed credential as one line of Base64, as an OEM string needs it."""
    return b"".join(blob.split())


def sealed_size(name: str, value: bytes) -> int:
    """The number of characters of a sealed value on one line."""
    metadata = (_METADATA.size + len(name) + 7) & ~7
    return 4 * ((_AAD_SIZE + metadata + len(value) + _TAG_SIZE + 2) // 3)


def is_valid_name(name: str) -> bool:
    """Whether systemd accepts this credential name (filename_is_valid() and fdname_is_valid())."""
    return (
        0 < len(name) <= _NAME_MAX
        and all(" " <= character <= "~" and character not in "/:" for character in name)
        and name not in {".", ".."}
    )


def _header(iv: bytes) -> bytes:
    return _pad8(_HOST + _SIZES.pack(_KEY_SIZE, _BLOCK_SIZE, _IV_SIZE, _TAG_SIZE) + iv)


def _pad8(data: bytes) -> bytes:
    return data + bytes(-len(data) % 8)


def _wrap(data: bytes) -> bytes:
    text = base64.b64encode(data)
    return b"\n".join([text[at : at + _LINE] for at in range(0, len(text), _LINE)]) + b"\n"


def _decode(blob: bytes, label: str) -> bytes:
    if len(blob) > SEALED_MAX * 2:
        raise SealError(
            f"{label} is larger than systemd's limit of {SEALED_MAX} bytes",
            hint="make the credential smaller",
        )
    try:
        data = base64.b64decode(one_line(blob), validate=True)
    except (binascii.Error, ValueError):
        raise SealError(f"{label} is not Base64", hint="seal it again; it may have been cut off") from None
    if len(data) > SEALED_MAX:
        raise SealError(
            f"{label} is larger than systemd's limit of {SEALED_MAX} bytes",
            hint="make the credential smaller",
        )
    return data


def _check_header(data: bytes, label: str) -> None:
    kind = KINDS.get(data[:ID_SIZE])
    if kind is None:
        raise SealError(
            f"{label} is not an encrypted credential of a kind that this release knows",
            hint="seal it again, with the systemd of this host: a later systemd may write other kinds",
        )
    if kind is not HOST:
        raise SealError(f"{label} is sealed with {kind.words}", hint=kind.remedy)
    if len(data) < _AAD_SIZE + _METADATA.size + 4 + _TAG_SIZE:
        raise SealError(f"{label} is cut short", hint="seal it again")
    if _SIZES.unpack_from(data, 16) != (_KEY_SIZE, _BLOCK_SIZE, _IV_SIZE, _TAG_SIZE):
        raise SealError(f"{label} uses sizes that systemd does not write", hint="seal it again")
