# SPDX-License-Identifier: MIT
"""When a secret ends by its own words."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from credferry.agent.reconcile.expiry import expires
from credferry.launcher.handoff import Secret

END = datetime(2027, 1, 1, tzinfo=UTC)


def certificate(end: datetime) -> bytes:
    """A certificate that ends then, as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    made = made.serial_number(1).not_valid_before(end - timedelta(days=90)).not_valid_after(end)
    return made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def token(claims: object) -> bytes:
    """A JSON web token with these claims."""
    parts = [json.dumps({"alg": "none"}), json.dumps(claims), "signature"]
    return b".".join(base64.urlsafe_b64encode(part.encode()).rstrip(b"=") for part in parts)


def test_a_chain_ends_with_its_first_end() -> None:
    """Of several certificates, also beside a key, the one that ends first counts."""
    chain = certificate(END + timedelta(days=900)) + certificate(END) + b"\n"
    assert expires(Secret(chain)) == END


def test_a_token_says_its_end() -> None:
    """A JSON web token's exp is read, with or without a newline behind it."""
    assert expires(Secret(token({"exp": END.timestamp()}))) == END
    assert expires(Secret(token({"exp": int(END.timestamp())}) + b"\n")) == END


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"hunter2",
        b"a.b.c",
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        token({"sub": "nobody"}),
        token({"exp": "soon"}),
        token({"exp": True}),
        token({"exp": 1e300}),
        token(["exp"]),
        b"a" * (1 << 17) + b".b.c",
        bytes(range(256)),
    ],
)
def test_other_values_say_nothing(value: bytes) -> None:
    """A value without an end, or with a broken one, has none, and raises nothing."""
    assert expires(Secret(value)) is None
