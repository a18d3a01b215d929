# SPDX-License-Identifier: MIT
"""The kinds of keys that a sealed credential can have, and how to tell them apart; pure.

Source: systemd, src/shared/creds-util.h; the same in 252 (without the scoped kinds), 257 and main of 2026.
The first 16 bytes of a sealed credential name its kind. Releases from 262 on may write other ids for TPM2.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class KeyKind:
    """What a credential of one kind is sealed with."""

    words: str
    host: bool = False
    """Whether the host's key takes part."""
    tpm: bool = False
    """Whether a TPM2 takes part."""
    public_key: bool = False
    """Whether a public key signs the PCR values with which the TPM2 opens it."""
    scoped: bool = False
    """Whether it opens for one user only."""

    @property
    def remedy(self) -> str:
        """What to do about a credential of this kind, where one of the host's key is needed."""
        if self.scoped:
            return "seal it for the system, without --user and --uid: systemd-creds encrypt --with-key=host"
        if self.tpm:
            return "it opens on its own host only, with: systemd-creds decrypt; then seal it again"
        return "seal it with: systemd-creds encrypt --with-key=host"


HOST: Final = KeyKind("the host's key", host=True)
TPM2: Final = KeyKind("a TPM2", tpm=True)
HOST_TPM2: Final = KeyKind("the host's key and a TPM2", host=True, tpm=True)
NULL: Final = KeyKind("the null key, which proves nothing")

KINDS: Final = {
    bytes.fromhex(digits): kind
    for digits, kind in {
        "5a1c6a86df9d4096b1d5a65e0862f19a": HOST,
        "55b9ed1d38594d43a8319d2ebb332ac6": KeyKind(
            "the host's key, scoped to a user", host=True, scoped=True
        ),
        "0c7cc07b117645919c4b0bea08bc20fe": TPM2,
        "faf7eb9341e3412ca1a436f95a29362f": KeyKind("a TPM2 with a public key", tpm=True, public_key=True),
        "93a894094874449090caf2fc93cab553": HOST_TPM2,
        "ef4ac13679a9480ea7db68897f9f165d": KeyKind(
            "the host's key and a TPM2, scoped to a user", host=True, tpm=True, scoped=True
        ),
        "af4950a849134eb1a73846304ff30c05": KeyKind(
            "the host's key and a TPM2 with a public key", host=True, tpm=True, public_key=True
        ),
        "adbc4ca3efb64201ba881b6f2e4095ea": KeyKind(
            "the host's key and a TPM2 with a public key, scoped to a user",
            host=True,
            tpm=True,
            public_key=True,
            scoped=True,
        ),
        "058469daf6f54324800549da0f8ea2fb": NULL,
    }.items()
}
"""By the first 16 bytes of a decoded credential."""

ID_SIZE: Final = 16
"""Bytes."""


def kind_of(blob: bytes) -> KeyKind | None:
    """The kind of a sealed credential, by its Base64; None for an unknown one, or for no credential."""
    return KINDS.get(decoded_head(blob, ID_SIZE))


def decoded_head(blob: bytes, size: int) -> bytes:
    """The first bytes of a sealed credential; fewer where it has no more. Empty if it is not Base64."""
    text = b"".join(blob[: 2 * size + 8].split())
    try:
        return base64.b64decode(text[: len(text) & ~3], validate=True)[:size]
    except binascii.Error:
        return b""
