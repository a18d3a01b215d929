# SPDX-License-Identifier: MIT
"""What a VM should get: from what is published and configured, with digests and limits; pure."""

from __future__ import annotations

import hmac
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from credferry.agent.sealing.credential import sealed_size
from credferry.agent.sealing.keys import KEY_DIGITS
from credferry.agent.source.snapshot import Problem, Snapshot
from credferry.launcher.handoff import (
    INITRD_TOTAL_MAX,
    Channel,
    Delivery,
    Kind,
    ManifestEntry,
    Secret,
    oem_string,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from credferry.agent.config.model import VmConfig
    from credferry.agent.sealing.keys import CredentialKey

API_STRINGS_MAX = 48 << 10
"""Bytes of OEM strings over the API: cloud-hypervisor up to v53 takes a document of 51,200 bytes, of which
the rest of a VM's description needs some."""


@dataclass(frozen=True, slots=True)
class Desired:
    """What a VM's next start should get. ``values`` are as published: nothing is sealed yet."""

    digest: str
    entries: tuple[ManifestEntry, ...]
    values: Mapping[str, Secret]
    delivery: Delivery
    guest: str = ""
    """Which guest key the digest is of (`guest_id`)."""


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a VM's next generation cannot be made. The VM keeps what it has."""

    reasons: tuple[str, ...]
    passing: bool = False
    """Whether a look a little later may well find otherwise."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What stands for the values that a VM should get: their digest, and each one's fingerprint."""

    digest: str
    entries: tuple[ManifestEntry, ...]


@dataclass(frozen=True, slots=True)
class Fingerprints:
    """64 hex digits for each secret's value, the same in every VM that uses the secret, for one look.

    Bound to the secret's name in the source, so that two secrets of one value do not show it.
    ``last`` are VMs' identities at the look before, each with a keyed hash of what they are of: making one
    takes several times as long as finding that it is still the same. For one configuration of the VMs.
    """

    key: CredentialKey
    last: dict[str, tuple[bytes, Identity]] = field(default_factory=dict)
    _known: dict[str, str] = field(default_factory=dict)

    def of(self, vm: VmConfig, name: str, value: Secret) -> str:
        """The fingerprint of a VM's credential."""
        secret = vm.credentials[name].secret
        label = f"text/{vm.name}/{name}" if secret is None else f"secret/{secret}"
        known = self._known.get(label)
        if known is None:
            content = label.encode() + b"\0" + value.reveal()
            known = hmac.digest(self.key.derive("fingerprint"), content, "sha256").hex()
            self._known[label] = known
        return known


def desired(
    vm: VmConfig, snapshot: Snapshot, fingerprints: Fingerprints, guest_key: CredentialKey | None
) -> Desired | Refused:
    """What the VM should get according to what is published now.

    Digests are keyed with what is derived from the host's key, so that they tell nothing about values.
    """
    values, reasons, passing = _published(vm, snapshot)
    if guest_key is None and vm.may_seal and any(vm.kind(name) is Kind.SEALED for name in values):
        reasons.append(
            f"there is no guest key: make one with credferry guest-key create {vm.name} --machine-id …"
        )
    if reasons:
        return Refused(tuple(reasons), passing)
    guest = guest_id(guest_key)
    content = [guest.encode()]
    for name, value in values.items():
        content += [b"%s %d " % (name.encode(), len(value.reveal())), value.reveal()]
    mark = hmac.digest(fingerprints.key.derive("mark"), b"".join(content), "sha256")
    last, identity = fingerprints.last.get(vm.name, (b"", None))
    if identity is None or last != mark:
        identity = identity_of(vm, values, fingerprints, guest)
        fingerprints.last[vm.name] = mark, identity
    return Desired(identity.digest, identity.entries, values, vm.delivery, guest)


def guest_id(key: CredentialKey | None) -> str:
    """What tells one guest key from another, and from none."""
    return key.derive("guest key id").hex() if key is not None else ""


def _published(vm: VmConfig, snapshot: Snapshot) -> tuple[dict[str, Secret], list[str], bool]:
    """A VM's values by credential, in order; why there is none for one; whether that may pass by itself."""
    values: dict[str, Secret] = {}
    reasons: list[str] = []
    passing = False
    for name, credential in sorted(vm.credentials.items()):
        if credential.text is not None:
            values[name] = Secret(credential.text.encode())
            continue
        if credential.secret is None:  # the configuration's check sees to it
            continue
        published = snapshot.values[credential.secret]
        match published:
            case Secret():
                values[name] = published
            case Problem.ABSENT | Problem.EMPTY if not credential.required:
                pass
            case Problem():
                reasons.append(f"{name}: secret {credential.secret!r} {published}: {published.remedy}")
                passing = passing or published is Problem.BEING_WRITTEN
    return values, reasons, passing


def identity_of(
    vm: VmConfig, values: Mapping[str, Secret], fingerprints: Fingerprints, guest: str
) -> Identity:
    """What stands for a VM's values, which are as published, in order of their credentials' names."""
    kinds = {name: vm.kind(name) for name in values}
    known = {name: fingerprints.of(vm, name, values[name]) for name in kinds}
    parts = [
        [name, kind.value, known[name], guest if kind is Kind.SEALED else ""] for name, kind in kinds.items()
    ]
    key = fingerprints.key
    digest = hmac.digest(key.derive("digest"), json.dumps(parts).encode(), "sha256").hex()
    return Identity(
        of_key(digest, key),
        tuple(ManifestEntry(name, kind, known[name][:16]) for name, kind in kinds.items()),
    )


def of_key(digest: str, key: CredentialKey) -> str:
    """A digest that a key has made, with what says so."""
    return digest[:-KEY_DIGITS] + key.digest_id


def are_of_one_key(one: str, other: str) -> bool:
    """Whether two digests can be compared: those of two host keys differ whatever they stand for."""
    return one[-KEY_DIGITS:] == other[-KEY_DIGITS:]


def over_limit(vm: VmConfig, what: Desired, other_oem_bytes: int) -> str | None:
    """Which limit of the way into the guest a generation would break, with the remedy; None for none."""
    delivered = {name: _as_delivered(name, vm.kind(name), value) for name, value in what.values.items()}
    sizes = {
        name: len(oem_string(name, vm.kind(name), value).reveal()) + 1
        for name, value in delivered.items()
        if what.delivery.is_oem(vm.kind(name))
    }
    in_initrd = sum(len(value.reveal()) for name, value in delivered.items() if name not in sizes)
    if in_initrd > INITRD_TOTAL_MAX:
        return (
            f"the sealed credentials are over {INITRD_TOTAL_MAX} bytes, the most that a guest takes from "
            "its initrd: pass fewer or smaller ones"
        )
    largest = max(sizes, key=lambda name: sizes[name], default="")
    if sum(sizes.values()) + other_oem_bytes > what.delivery.oem_total_max:
        return (
            f"{largest}: with it the VM's OEM strings are over {what.delivery.oem_total_max} bytes, "
            "the most that its guest's systemd reads: pass fewer or smaller ones"
            + (", or say guest_systemd = 257 if it is that new" if vm.guest_systemd < 257 else "")  # noqa: PLR2004 (systemd's version)
        )
    if what.delivery.channel is Channel.API and sum(sizes.values()) > API_STRINGS_MAX:
        return (
            f"{largest}: with it the VM's OEM strings are over {API_STRINGS_MAX} bytes, the most that "
            "cloud-hypervisor's API takes: pass fewer or smaller ones"
        )
    return None


def _as_delivered(name: str, kind: Kind, value: Secret) -> Secret:
    return Secret(b"=" * sealed_size(name, value.reveal())) if kind is Kind.SEALED else value
