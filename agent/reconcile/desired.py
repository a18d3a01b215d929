# SPDX-License-Identifier: MIT
"""What a VM should get, from the published secrets and the configuration; with digests; pure."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from credferry.agent.errors import SourceError, describe
from credferry.agent.reconcile.expiry import ends_of
from credferry.agent.reconcile.pairs import Apart, belong
from credferry.agent.sealing.keys import KEY_DIGITS
from credferry.agent.source.reading import Problem
from credferry.launcher.handoff import (
    Delivery,
    Kind,
    ManifestEntry,
    Secret,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from credferry.agent.config.model import VmConfig
    from credferry.agent.sealing.keys import CredentialKey
    from credferry.agent.source.published import Publication


@dataclass(frozen=True, slots=True)
class Desired:
    """What a VM's next start should get. ``values`` are as published: nothing is sealed yet."""

    digest: str
    entries: tuple[ManifestEntry, ...]
    values: Mapping[str, Secret]
    delivery: Delivery
    guest: str = ""
    """Id of the guest key that the digest includes (`guest_id`)."""
    ends: Mapping[str, float] = field(default_factory=dict)
    """When values end by their own words, in seconds since 1970, by credential."""


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a VM's next generation cannot be made. The VM keeps what it has."""

    reasons: tuple[str, ...]
    passing: bool = False
    """Whether the reason may go away by itself soon."""


@dataclass(frozen=True, slots=True)
class Unpaired(Refused):
    """A pair of the VM does not belong together yet. What is missing may be published at any time."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Identifies the values that a VM should get: their digest, and a fingerprint of each."""

    digest: str
    entries: tuple[ManifestEntry, ...]
    ends: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Fingerprints:
    """Fingerprints of secrets' values for one check: 64 hex digits, equal in every VM that uses the secret.

    A fingerprint depends on the secret's name in the source, so it does not show that two secrets have the
    same value. ``last`` holds each VM's identity at the previous check, with a keyed hash of the values.
    Comparing the hash is several times faster than making an identity. ``last`` is valid for one
    configuration of the VMs.
    """

    key: CredentialKey
    last: dict[str, tuple[bytes, Identity]] = field(default_factory=dict)
    _known: dict[str, str] = field(default_factory=dict)

    def of(self, vm: VmConfig, name: str, value: Secret) -> str:
        """The fingerprint of a VM's credential."""
        credential = vm.credentials[name]
        label = f"text/{vm.name}/{name}" if credential.secret is None else credential.place
        known = self._known.get(label)
        if known is None:
            content = label.encode() + b"\0" + value.reveal()
            known = self.key.mac("fingerprint").of(content).hex()
            self._known[label] = known
        return known


def desired(
    vm: VmConfig, published: Publication, fingerprints: Fingerprints, guest_key: CredentialKey | None
) -> Desired | Refused:
    """What the VM should get according to what is published now.

    Digests are keyed with a key derived from the host's key, so they reveal nothing about values.
    """
    values, reasons, passing = _published(vm, published)
    seals = vm.live or any(vm.kind(name) is Kind.SEALED for name in values)
    if guest_key is None and vm.may_seal and seals:
        reasons.append(
            f"there is no guest key: make one with credferry guest-key create {vm.name} --machine-id …"
            if vm.guest_machine_id is None
            else "there is no guest key: the agent makes one when it checks next"
        )
    if reasons:
        return Refused(tuple(reasons), passing)
    found = [belong(pair, values.get(pair[0]), values.get(pair[1])) for pair in vm.pairs]
    if apart := [f"for its pair: {each.reason}" for each in found if isinstance(each, Apart)]:
        return Unpaired(tuple(apart))
    guest = guest_id(guest_key)
    content = [guest.encode()]
    for name, value in values.items():
        content += [b"%s %d " % (name.encode(), len(value.reveal())), value.reveal()]
    mark = fingerprints.key.mac("mark").of(b"".join(content))
    last, identity = fingerprints.last.get(vm.name, (b"", None))
    if identity is None or last != mark:
        identity = replace(identity_of(vm, values, fingerprints, guest), ends=ends_of(vm, values))
        fingerprints.last[vm.name] = mark, identity
    return Desired(identity.digest, identity.entries, values, vm.delivery, guest, identity.ends)


def guest_id(key: CredentialKey | None) -> str:
    """Id that distinguishes guest keys; empty without a key."""
    return key.derive("guest key id").hex() if key is not None else ""


def _published(vm: VmConfig, published: Publication) -> tuple[dict[str, Secret], list[str], bool]:
    """A VM's values by credential, the reasons for missing ones, and whether one may go away by itself."""
    values: dict[str, Secret] = {}
    reasons: list[str] = []
    passing = False
    for name, credential in sorted(vm.credentials.items()):
        if credential.text is not None:
            values[name] = Secret(credential.text.encode())
            continue
        if credential.secret is None:  # the configuration's check excludes this
            continue
        match value := published.value(credential):
            case SourceError():
                if (reason := describe(value)) not in reasons:
                    reasons.append(reason)
            case Secret():
                values[name] = value
            case Problem.ABSENT | Problem.EMPTY | Problem.NO_FIELD if not credential.required:
                pass
            case Problem():
                reasons.append(f"{name}: {credential.called} {value}: {value.remedy}")
                passing = passing or value is Problem.BEING_WRITTEN
    return values, reasons, passing


def identity_of(
    vm: VmConfig, values: Mapping[str, Secret], fingerprints: Fingerprints, guest: str
) -> Identity:
    """Identity of a VM's values. They must be as published, in order of the credentials' names."""
    kinds = {name: vm.kind(name) for name in values}
    known = {name: fingerprints.of(vm, name, values[name]) for name in kinds}
    parts = [
        [name, kind.value, known[name], guest if kind is Kind.SEALED else ""] for name, kind in kinds.items()
    ]
    key = fingerprints.key
    digest = key.mac("digest").of(json.dumps(parts).encode()).hex()
    return Identity(
        of_key(digest, key),
        tuple(ManifestEntry(name, kind, known[name][:16]) for name, kind in kinds.items()),
    )


def of_key(digest: str, key: CredentialKey) -> str:
    """A digest made with a key, with the key's id as its last digits."""
    return digest[:-KEY_DIGITS] + key.digest_id


def are_of_one_key(one: str, other: str) -> bool:
    """Whether two digests can be compared. Digests made with different host keys always differ."""
    return one[-KEY_DIGITS:] == other[-KEY_DIGITS:]
