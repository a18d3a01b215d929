# SPDX-License-Identifier: MIT
"""The launcher's own HMAC, against Python's."""

from __future__ import annotations

import hmac

from hypothesis import example, given
from hypothesis import strategies as st

from credferry.launcher import keyed
from credferry.launcher.handoff import Delivery, Kind, Manifest, ManifestEntry, Secret, value_digest

PARTS = st.tuples(
    st.sampled_from(["a", "ab", "b"]),
    st.integers(1, 3),
    st.sampled_from(["A", "AA", "1"]),
    st.sampled_from(list(Kind)),
    st.sampled_from([b"", b"A", b"1", b"\0" * 8]),
)


@given(st.binary(max_size=64), st.binary(max_size=200))
def test_it_is_hmac(key: bytes, message: bytes) -> None:
    """For each key that fits into a block."""
    assert keyed.digest(key, message) == hmac.digest(key, message, "sha256")


@given(PARTS, PARTS)
@example(("a", 11, "A", Kind.PLAIN, b""), ("a1", 1, "A", Kind.PLAIN, b""))
@example(("a", 1, "A", Kind.PLAIN, b""), ("a", 1, "Aplain", Kind.PLAIN, b""))
@example(("a", 1, "A", Kind.PLAIN, b"plain"), ("a", 1, "Aplain", Kind.PLAIN, b""))
def test_two_places_have_two_digests(
    one: tuple[str, int, str, Kind, bytes], other: tuple[str, int, str, Kind, bytes]
) -> None:
    """No part of what is bound can be moved into its neighbour."""

    def digest(vm: str, generation: int, name: str, kind: Kind, value: bytes) -> str:
        manifest = Manifest(vm, generation, "0" * 64, "0" * 32, Delivery(), ())
        return value_digest("ab" * 32, manifest, ManifestEntry(name, kind, "0" * 16), Secret(value))

    assert (digest(*one) == digest(*other)) == (one == other)
