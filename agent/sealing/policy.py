# SPDX-License-Identifier: MIT
"""Under which conditions a TPM2 opens a sealed credential, as its header says; pure.

Source: systemd, src/shared/creds-util.c, ``struct tpm2_credential_header`` and
``struct tpm2_public_key_credential_header``. The header is in the clear. All integers are little-endian.
After the 48 bytes that all kinds have::

    8  PCR mask
    2  PCR bank
    2  algorithm of the primary key
    4  size of the TPM's blob
    4  size of the policy's hash
       blob, hash, padding to a multiple of 8
    8  PCR mask of the public key      -- only in the kinds with a public key
    4  size of the public key
       public key
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from credferry.agent.sealing.kinds import HOST, ID_SIZE, KINDS, KeyKind, decoded_head

_START: Final = 48
_TPM: Final = struct.Struct("<QHHII")
_KEY: Final = struct.Struct("<QI")
_HEAD_MAX: Final = 40 << 10
"""Bytes of a header that are looked at: each of its fields has at most CREDENTIAL_FIELD_SIZE_MAX, 16 KiB."""


@dataclass(frozen=True, slots=True)
class OpeningPolicy:
    """What must hold so that a credential opens. Two are equal where the same must hold."""

    kind: KeyKind
    pcrs: tuple[int, ...] = ()
    """PCRs whose values must be those of the moment when it was sealed."""
    digest: bytes = b""
    """The TPM's digest of those values."""
    public_key: bytes = b""
    """The key that signs values of further PCRs, as systemd keeps it; empty for none."""
    signed: tuple[int, ...] = ()
    """PCRs whose values that key signs."""


def policy_of(blob: bytes) -> OpeningPolicy | None:
    """The policy of a sealed credential, by its Base64; None where its header is of no known form."""
    head = decoded_head(blob, _HEAD_MAX)
    kind = KINDS.get(head[:ID_SIZE])
    if kind is None:
        return None
    if not kind.tpm:
        return OpeningPolicy(kind)
    try:
        mask, _bank, _primary, blob_size, hash_size = _TPM.unpack_from(head, _START)
        at = _START + _TPM.size + blob_size
        policy = OpeningPolicy(kind, _pcrs(mask), head[at : at + hash_size])
        if not kind.public_key:
            return policy
        at = (at + hash_size + 7) & ~7
        mask, size = _KEY.unpack_from(head, at)
    except struct.error:
        return None
    at += _KEY.size
    return OpeningPolicy(kind, policy.pcrs, policy.digest, head[at : at + size], _pcrs(mask))


OF_HOST: Final = OpeningPolicy(HOST)


def _pcrs(mask: int) -> tuple[int, ...]:
    return tuple(number for number in range(24) if mask >> number & 1)
