# SPDX-License-Identifier: MIT
"""SHA-256 and HMAC-SHA256 are those of their standards, and of Python's own library."""

from __future__ import annotations

import hashlib
import hmac
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from credferry.agent.digests import Mac, are_same, sha256

RFC_4231 = [
    (b"\x0b" * 20, b"Hi There", "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"),
    (
        b"Jefe",
        b"what do ya want for nothing?",
        "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
    ),
    (b"\xaa" * 20, b"\xdd" * 50, "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe"),
    (
        b"\xaa" * 131,
        b"Test Using Larger Than Block-Size Key - Hash Key First",
        "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54",
    ),
]
"""Test cases 1, 2, 3 and 6: key, data, HMAC-SHA-256."""


@pytest.mark.parametrize(("key", "content", "expected"), RFC_4231)
def test_known_macs(key: bytes, content: bytes, expected: str) -> None:
    """RFC 4231's vectors, each asked for twice: the key is set up once."""
    mac = Mac(key)
    assert [mac.of(content).hex() for _ in range(2)] == [expected, expected]


@given(key=st.binary(max_size=200), contents=st.lists(st.binary(max_size=300), max_size=4))
def test_a_mac_is_pythons(key: bytes, contents: list[bytes]) -> None:
    """For any key and contents, one after the other, it is what Python's `hmac` makes."""
    mac = Mac(key)
    assert [mac.of(each) for each in contents] == [hmac.digest(key, each, "sha256") for each in contents]


@given(st.binary(max_size=300))
def test_a_hash_is_pythons(content: bytes) -> None:
    """For any content, it is what Python's `hashlib` makes."""
    assert sha256(content) == hashlib.sha256(content).digest()


@given(st.text(st.characters(), max_size=8), st.text(st.characters(), max_size=8))
def test_texts_are_compared(one: str, other: str) -> None:
    """Any texts can be compared, also those of a journal that no UTF-8 can hold."""
    assert are_same(one, one)
    assert are_same(one, other) == (one == other)


def test_the_key_stays_inside() -> None:
    """Neither the repr nor a pickle of a `Mac` has its key."""
    mac = Mac(b"a key that nobody sees")
    assert repr(mac) == "Mac(…)"
    with pytest.raises(TypeError):
        pickle.dumps(mac)
