# SPDX-License-Identifier: MIT
"""Kinds of sealed credentials are told apart, each with its remedy, as real systemd-creds wrote them."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from credferry.agent.errors import SealError
from credferry.agent.sealing.credential import seal, unseal
from credferry.agent.sealing.keys import CredentialKey
from credferry.agent.sealing.kinds import HOST, KINDS, NULL, KeyKind, kind_of
from credferry.agent.sealing.policy import OF_HOST, policy_of

KEY = CredentialKey(bytes(range(256)) * 16)
VECTORS = json.loads((Path(__file__).parents[2] / "data/credential-kind-vectors.json").read_text())[
    "vectors"
]
EACH = pytest.mark.parametrize(
    "vector",
    [
        pytest.param(each, id=f"{number} {each['systemd']} {each['with_key']}")
        for number, each in enumerate(VECTORS)
    ],
)


@EACH
def test_the_kind_of_what_systemd_wrote(vector: dict[str, Any]) -> None:
    """The kind of a credential is known by what systemd 252 and 257 wrote, with and without line feeds."""
    for blob in (vector["sealed"].encode(), b"".join(vector["sealed"].encode().split())):
        kind = kind_of(blob)
        assert kind is not None
        assert (kind.host, kind.tpm, kind.public_key, kind.scoped) == (
            "host" in vector["with_key"],
            "tpm2" in vector["with_key"],
            "public-key" in vector["with_key"],
            vector["scoped"],
        )


@EACH
def test_the_policy_of_what_systemd_wrote(vector: dict[str, Any]) -> None:
    """The PCRs, and the public key with its PCRs, are those that systemd was asked to seal with."""
    policy = policy_of(vector["sealed"].encode())
    assert policy is not None
    assert list(policy.pcrs) == vector["pcrs"]
    assert list(policy.signed) == vector["signed"]
    assert bool(policy.public_key) == ("public-key" in vector["with_key"])
    assert len(policy.digest) == (32 if "tpm2" in vector["with_key"] else 0)


@EACH
def test_a_refusal_names_the_kind_and_its_remedy(vector: dict[str, Any]) -> None:
    """The host's key opens none of them. The error says what they are sealed with, and what to do."""
    kind = kind_of(vector["sealed"].encode())
    assert kind is not None
    assert kind is not HOST
    with pytest.raises(SealError, match=f"is sealed with {re.escape(kind.words)}$") as caught:
        unseal(vector["sealed"].encode(), name="kind", key=KEY)
    assert caught.value.hint == kind.remedy


def test_remedies() -> None:
    """A scoped credential, one of a TPM2 and one of the null key have different remedies."""
    scoped = KeyKind("", host=True, tpm=True, scoped=True)
    assert len({scoped.remedy, KeyKind("", tpm=True).remedy, NULL.remedy}) == 3
    assert "--uid" in scoped.remedy


@given(st.binary(min_size=48, max_size=200))
def test_an_unknown_kind(data: bytes) -> None:
    """An id that no table has, as a later systemd may write, is said to be unknown, not damaged."""
    if data[:16] in KINDS:
        return
    blob = base64.b64encode(data)
    assert kind_of(blob) is None
    assert policy_of(blob) is None
    with pytest.raises(SealError, match="of a kind that this release knows") as caught:
        unseal(blob, name="n", key=KEY)
    assert "a later systemd" in caught.value.hint


@given(
    cut=st.integers(min_value=0, max_value=400), which=st.sampled_from(VECTORS), tail=st.binary(max_size=8)
)
def test_no_header_raises(cut: int, which: dict[str, Any], tail: bytes) -> None:
    """A header that is cut off anywhere, or ends in other bytes, raises nothing."""
    raw = base64.b64decode(which["sealed"])[:cut] + tail
    kind_of(base64.b64encode(raw))
    policy_of(base64.b64encode(raw))
    kind_of(tail)
    policy_of(tail)


def test_the_hosts_kind() -> None:
    """What the agent seals itself has the kind and the policy of the host's key."""
    blob = seal(b"v", name="n", key=KEY)
    assert kind_of(blob) is HOST
    assert policy_of(blob) == OF_HOST
