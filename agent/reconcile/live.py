# SPDX-License-Identifier: MIT
"""The manifest that tells a guest which generation it holds, and what a push must bring; pure.

A VM with ``live = true`` gets it as one more credential, `PUSH_MANIFEST`: at its boot with the others, and
in each push. It is sealed for the guest where the VM has a guest key. Lines of ASCII, for a shell::

    credferry-push 1
    vm NAME
    generation N
    key guest|none
    receipt 32 HEX DIGITS
    credential NAME sealed|plain SHA256       one for each credential, sorted by name

SHA256 is that of the value as the guest opens it. It is not keyed: whoever can read a manifest in the form
in which it leaves the host can read the values as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from credferry.agent.digests import sha256
from credferry.agent.sealing.credential import one_line, seal, sealed_size
from credferry.launcher.handoff import (
    GENERATION_MAX,
    PUSH_MANIFEST,
    Kind,
    Manifest,
    ManifestEntry,
    Secret,
    push_receipt,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from credferry.agent.sealing.keys import CredentialKey

_NO_FINGERPRINT: Final = "0" * 16
_NO_RECEIPT: Final = "0" * 32


def with_push_manifest(
    manifest: Manifest, published: Mapping[str, Secret], guest: CredentialKey | None
) -> tuple[Manifest, Secret]:
    """A generation's manifest with the entry for the guest's manifest, and the value of that entry.

    ``published`` are the values as published, and ``manifest`` has its key. Raises `SealError`.
    """
    kinds = {entry.name: entry.kind for entry in manifest.credentials}
    text = _text(
        manifest.vm, manifest.generation, push_receipt(manifest), kinds, published, guest is not None
    )
    kind = Kind.PLAIN
    if guest is not None:
        kind, text = Kind.SEALED, one_line(seal(text, name=PUSH_MANIFEST, key=guest))
    entry = ManifestEntry(PUSH_MANIFEST, kind, _NO_FINGERPRINT)
    return manifest.but(credentials=(*manifest.credentials, entry)), Secret(text)


def push_manifest_at_most(vm: str, kinds: Mapping[str, Kind], *, is_sealed: bool) -> tuple[Kind, Secret]:
    """A stand-in for the value that `with_push_manifest` makes: no real one is longer."""
    nothing = dict.fromkeys(kinds, Secret(b""))
    text = _text(vm, GENERATION_MAX, _NO_RECEIPT, kinds, nothing, is_sealed)
    if is_sealed:
        return Kind.SEALED, Secret(b"=" * sealed_size(PUSH_MANIFEST, text))
    return Kind.PLAIN, Secret(text)


def _text(  # noqa: PLR0917 (the parts of one text)
    vm: str,
    generation: int,
    receipt: str,
    kinds: Mapping[str, Kind],
    published: Mapping[str, Secret],
    is_sealed: bool,
) -> bytes:
    lines = [
        "credferry-push 1",
        f"vm {vm}",
        f"generation {generation}",
        f"key {'guest' if is_sealed else 'none'}",
        f"receipt {receipt}",
    ]
    for name in sorted(kinds):
        kind = "sealed" if kinds[name] is Kind.SEALED else "plain"
        lines.append(f"credential {name} {kind} {sha256(published[name].reveal()).hex()}")
    return "".join(f"{line}\n" for line in lines).encode()
