# SPDX-License-Identifier: MIT
"""Whether a certificate and a private key belong together, by their public keys; pure.

PEM and DER are read: chains, whose first certificate counts, and keys in PKCS#1, SEC1, PKCS#8 and
OpenSSH's form. No result holds a value.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

    from credferry.launcher.handoff import Secret

_BLOCK: Final = rb"-----BEGIN (%b)-----(.*?)-----END \1-----"
_CERTIFICATE: Final = re.compile(_BLOCK % rb"CERTIFICATE", re.DOTALL)
_KEY: Final = re.compile(_BLOCK % rb"(?:[A-Z0-9]+ )*PRIVATE KEY", re.DOTALL)
_OPEN_SSH: Final = b"openssh-key-v1\0\0\0\0\4none"
"""How a key begins that no password protects (openssh, PROTOCOL.key)."""


@dataclass(frozen=True, slots=True)
class Together:
    """The certificate is of the key."""


@dataclass(frozen=True, slots=True)
class Apart:
    """They do not belong together, or one of them is not complete yet."""

    reason: str


@dataclass(frozen=True, slots=True)
class Uncheckable:
    """It cannot be known whether they belong together."""

    reason: str


Bond = Together | Apart | Uncheckable


class _EncryptedError(Exception):
    """The key needs a password."""


def belong(names: tuple[str, str], certificate: Secret | None, key: Secret | None) -> Bond:
    """Whether a pair belongs together. ``names`` are the credentials', for reasons. Raises nothing."""
    one, other = names
    if certificate is None or key is None:
        lacks, has = (one, other) if certificate is None else (other, one)
        return Together() if certificate is key else Apart(f"{has} is there without {lacks}")
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415 (for VMs with pairs)

    try:
        of_certificate = _of_certificate(certificate.reveal())
    except UnsupportedAlgorithm:
        return Uncheckable(f"the kind of {one} is not known")
    except ValueError:
        return Apart(f"{one} is not a certificate")
    try:
        of_key = _of_key(key.reveal())
    except _EncryptedError:
        return Uncheckable(f"{other} is encrypted")
    except UnsupportedAlgorithm:
        return Uncheckable(f"the kind of {other} is not known")
    except (ValueError, TypeError):
        return Apart(f"{other} is not a private key")
    return Together() if of_certificate == of_key else Apart(f"{one} is of another key than {other}")


def _of_certificate(value: bytes) -> bytes:
    """The public key in a certificate, in DER. Raises ValueError and `UnsupportedAlgorithm`."""
    from cryptography import x509  # noqa: PLC0415 (see above)

    block = _CERTIFICATE.search(value)
    found = x509.load_pem_x509_certificate(block[0]) if block else x509.load_der_x509_certificate(value)
    return _public(found)


def _of_key(value: bytes) -> bytes:
    """The public key of a private key, in DER. Raises `_EncryptedError`, and as `_of_certificate` does."""
    from cryptography.hazmat.primitives import serialization as form  # noqa: PLC0415 (see above)

    block = _KEY.search(value)
    if block is None:
        # Nothing is done with the private key, so its numbers need no check, which takes long for RSA.
        return _public(form.load_der_private_key(value, None, unsafe_skip_rsa_key_validation=True))
    if block[1] == b"ENCRYPTED PRIVATE KEY" or b"Proc-Type: 4,ENCRYPTED" in block[0]:
        raise _EncryptedError
    if block[1] == b"OPENSSH PRIVATE KEY":
        if not base64.b64decode(block[2]).startswith(_OPEN_SSH):
            raise _EncryptedError
        return _public(form.load_ssh_private_key(block[0], None))
    return _public(form.load_pem_private_key(block[0], None, unsafe_skip_rsa_key_validation=True))


def _public(found: x509.Certificate | PrivateKeyTypes) -> bytes:
    from cryptography.hazmat.primitives import serialization as form  # noqa: PLC0415 (see above)

    return found.public_key().public_bytes(form.Encoding.DER, form.PublicFormat.SubjectPublicKeyInfo)
