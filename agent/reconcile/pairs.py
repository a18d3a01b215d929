# SPDX-License-Identifier: MIT
"""Whether a certificate and a private key belong together, by their public keys; pure.

PEM and DER are read: chains, whose first certificate counts, and keys in PKCS#1, SEC1, PKCS#8 and
OpenSSH's form. No result holds a value.
"""

from __future__ import annotations

import base64
import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.types import (
        CertificatePublicKeyTypes,
        PrivateKeyTypes,
        PublicKeyTypes,
    )
    from cryptography.hazmat.primitives.serialization.ssh import SSHPublicKeyTypes

    from credferry.launcher.handoff import Secret

# A block ends at the next dashes, and no part is tried twice. So the time is proportional to the size, even
# for a file that begins blocks and ends none.
_BLOCK: Final = rb"-----BEGIN (%b)-----((?>[^-]+|-(?!----))*+)-----END \1-----"
_CERTIFICATE: Final = re.compile(_BLOCK % rb"CERTIFICATE")
_KEY: Final = re.compile(_BLOCK % rb"(?:[A-Z0-9]+ )*PRIVATE KEY")
_OPEN_SSH: Final = b"openssh-key-v1\0\0\0\0\4none"
"""How a key begins that no password protects (openssh, PROTOCOL.key)."""
_SIZE: Final = struct.Struct(">I")
_SLOW: Final = tuple(
    map(bytes.fromhex, ("06072a8648ce380401", "06092a864886f70d010301", "06072a8648ce3e0201"))
)
"""How DER names the algorithms DSA, DH (PKCS#3) and DH (X9.42). Loading such a key computes with numbers of
any size: hours for a file of 1 MiB."""


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
    except Exception:  # noqa: BLE001 (cryptography has many kinds, and their texts may quote the value)
        return Apart(f"{one} is not a certificate")
    try:
        of_key = _of_key(key.reveal())
    except _EncryptedError:
        return Uncheckable(f"{other} is encrypted")
    except UnsupportedAlgorithm:
        return Uncheckable(f"the kind of {other} is not known")
    except Exception:  # noqa: BLE001 (see above)
        return Apart(f"{other} is not a private key")
    return Together() if of_certificate == of_key else Apart(f"{one} is of another key than {other}")


def _of_certificate(value: bytes) -> bytes:
    """The public key in a certificate, in DER. Raises `UnsupportedAlgorithm` and others."""
    from cryptography import x509  # noqa: PLC0415 (see above)

    block = _CERTIFICATE.search(value)
    return _public(x509.load_der_x509_certificate(_quick(_body(block) if block else value)))


def _of_key(value: bytes) -> bytes:
    """The public key of a private key, in DER. Raises `_EncryptedError`, and as `_of_certificate` does."""
    from cryptography.hazmat.primitives import serialization as form  # noqa: PLC0415 (see above)

    block = _KEY.search(value)
    if block is None or block[1] == b"PRIVATE KEY":
        der = _quick(_body(block) if block else value)
        # Nothing is done with the private key, so its numbers need no check, which takes long for RSA.
        return _public(form.load_der_private_key(der, None, unsafe_skip_rsa_key_validation=True))
    if block[1] == b"ENCRYPTED PRIVATE KEY" or b"Proc-Type: 4,ENCRYPTED" in block[0]:
        raise _EncryptedError
    if block[1] == b"OPENSSH PRIVATE KEY":
        return _of_open_ssh(_body(block))
    _quick(base64.b64decode(block[2]))  # older releases of cryptography may take a key under another's name
    return _public(form.load_pem_private_key(block[0], None, unsafe_skip_rsa_key_validation=True))


def _body(block: re.Match[bytes]) -> bytes:
    return base64.b64decode(b"".join(block[2].split()), validate=True)


def _quick(der: bytes) -> bytes:
    """The same, if it is read within milliseconds. Raises `UnsupportedAlgorithm` otherwise."""
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415 (see above)

    if any(each in der for each in _SLOW):
        raise UnsupportedAlgorithm("")
    return der


def _of_open_ssh(content: bytes) -> bytes:
    """The public key that stands before the private key. Raises as `_of_key` does.

    Loading the private key would check the primes of an RSA key, which takes minutes for a huge one.
    """
    from cryptography.hazmat.primitives import serialization as form  # noqa: PLC0415 (see above)

    if not content.startswith(_OPEN_SSH):
        raise _EncryptedError
    rest = content[len(_OPEN_SSH) :]
    for _ in ("the name of the key derivation", "its options"):
        _, rest = _string(rest)
    public, _ = _string(rest[_SIZE.size :])  # after the number of keys, which is 1
    kind, _ = _string(public)
    return _encoded(form.load_ssh_public_key(kind + b" " + base64.b64encode(public)))


def _string(data: bytes) -> tuple[bytes, bytes]:
    """A string in SSH's form (RFC 4251), and what follows it. Raises `struct.error`."""
    (size,) = _SIZE.unpack_from(data)
    return data[_SIZE.size : _SIZE.size + size], data[_SIZE.size + size :]


def _public(found: x509.Certificate | PrivateKeyTypes) -> bytes:
    return _encoded(found.public_key())


def _encoded(key: CertificatePublicKeyTypes | PublicKeyTypes | SSHPublicKeyTypes) -> bytes:
    from cryptography.hazmat.primitives import serialization as form  # noqa: PLC0415 (see above)

    return key.public_bytes(form.Encoding.DER, form.PublicFormat.SubjectPublicKeyInfo)
