# SPDX-License-Identifier: MIT
"""The manifest that tells a guest which generation it holds."""

from __future__ import annotations

import hashlib

import pytest

from credferry.agent.reconcile.live import push_manifest_at_most, with_push_manifest
from credferry.agent.sealing.credential import unseal
from credferry.agent.sealing.keys import CredentialKey
from credferry.launcher.handoff import (
    PUSH_MANIFEST,
    Delivery,
    Kind,
    Manifest,
    ManifestEntry,
    Secret,
    push_receipt,
)

PUBLISHED = {"B": Secret(b"the value of b"), "A": Secret(b"the value of a")}
GUEST = CredentialKey(b"guest")


def a_manifest(generation: int = 7) -> Manifest:
    """A generation with one sealed and one plain credential."""
    entries = (ManifestEntry("B", Kind.SEALED, "0" * 16), ManifestEntry("A", Kind.TEXT, "1" * 16))
    return Manifest("web", generation, "ab" * 32, "cd" * 16, Delivery(), entries, "ef" * 32)


def text_of(manifest: Manifest) -> str:
    """What the guest must find in its manifest."""
    digests = {name: hashlib.sha256(value.reveal()).hexdigest() for name, value in PUBLISHED.items()}
    return (
        f"credferry-push 1\nvm web\ngeneration {manifest.generation}\nkey guest\n"
        f"receipt {push_receipt(manifest)}\n"
        f"credential A plain {digests['A']}\ncredential B sealed {digests['B']}\n"
    )


def test_it_is_sealed_where_the_guest_has_a_key() -> None:
    """Only that guest reads the receipt, under the name that the guest's systemd checks."""
    manifest, value = with_push_manifest(a_manifest(), PUBLISHED, GUEST)
    assert manifest.credentials[-1].kind is Kind.SEALED
    assert b"\n" not in value.reveal()
    assert unseal(value.reveal(), name=PUSH_MANIFEST, key=GUEST).decode() == text_of(manifest)


def test_it_is_plain_and_no_text_without_one() -> None:
    """It holds a receipt and digests, so it counts as a secret where nothing seals it."""
    manifest, value = with_push_manifest(a_manifest(), PUBLISHED, None)
    assert manifest.credentials[-1] == ManifestEntry(PUSH_MANIFEST, Kind.PLAIN, "0" * 16)
    assert value.reveal().decode() == text_of(manifest).replace("key guest", "key none")


def test_a_receipt_is_of_one_generation_of_one_vm() -> None:
    """Another VM, generation or key has another receipt, so none can be replayed."""
    one = a_manifest()
    others = [one.but(vm="far"), one.but(generation=8), one.but(key="ee" * 32)]
    assert len({push_receipt(each) for each in [one, *others]}) == 4
    assert push_receipt(one) == push_receipt(one.but(digest="00" * 32))


@pytest.mark.parametrize("guest", [GUEST, None], ids=["sealed", "plain"])
def test_its_size_is_known_before_it_is_made(guest: CredentialKey | None) -> None:
    """The limit of OEM strings is checked with the longest that it can be."""
    kinds = {entry.name: entry.kind for entry in a_manifest().credentials}
    kind, most = push_manifest_at_most("web", kinds, is_sealed=guest is not None)
    manifest, value = with_push_manifest(a_manifest(2**31 - 1), PUBLISHED, guest)
    assert (manifest.credentials[-1].kind, len(value.reveal())) == (kind, len(most.reveal()))
