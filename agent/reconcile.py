# SPDX-License-Identifier: MIT
"""What is to be done, from what is: a pure function of published, sealed and running.

The agent closes two gaps and nothing else: published ≠ sealed → seal a new generation; sealed ≠ running,
and the unit is active → restart it. An event is only a reason to look; a lost one costs time, never a
rotation, and a needless one costs nothing.
"""

from __future__ import annotations

import enum
import hmac
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agent.sealing import sealed_size
from agent.source import Problem, Snapshot
from agent.store import Assumed, Attempt
from launcher.handoff import (
    Channel,
    Delivery,
    Kind,
    Manifest,
    ManifestEntry,
    Secret,
    Stamp,
    oem_string,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.config import VmConfig
    from agent.keys import CredentialKey
    from agent.units import UnitState

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


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a VM's next generation cannot be made. The VM keeps what it has."""

    reasons: tuple[str, ...]
    passing: bool = False
    """Whether a look a little later may well find otherwise."""


@dataclass(frozen=True, slots=True)
class Observed:
    """Everything about one VM at one moment. ``unit`` is None when systemd was not asked."""

    vm: VmConfig
    desired: Desired | Refused
    sealed: Manifest | None
    unit: UnitState | None
    stamp: Stamp | None
    assumed: Assumed | None
    attempt: Attempt | None


class State(enum.StrEnum):
    """Where a VM stands."""

    IN_STEP = "in step"
    STOPPED = "stopped"
    """Not running; its next start gets the current generation."""
    RESTART_DUE = "restart due"
    SEAL_DUE = "seal due"
    """A new generation is to be sealed, and no restart is known to be needed."""
    CHANGING = "changing"
    """Its unit is on its way up or down, or has not left its stamp yet; looked at again shortly."""
    REFUSED = "refused"
    FAILED = "failed"
    HALTED = "halted"
    NO_UNIT = "no unit"


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to be done about one VM, and why not more."""

    vm: VmConfig
    state: State
    seal: Desired | None = None
    restart: bool = False
    assume: Assumed | None = None
    reasons: tuple[str, ...] = field(default=())
    look_again: bool = False


def desired(
    vm: VmConfig, snapshot: Snapshot, key: CredentialKey, guest_key: CredentialKey | None
) -> Desired | Refused:
    """What the VM should get according to what is published now.

    Digests are keyed with what is derived from the host's key, so that they tell nothing about values.
    """
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
    if guest_key is None and any(vm.kind(name) is Kind.SEALED for name in values):
        reasons.append(
            f"there is no guest key: make one with credferry guest-key create {vm.name} --machine-id …"
        )
    if reasons:
        return Refused(tuple(reasons), passing)
    fingerprints = {name: fingerprint(key, vm, name, value) for name, value in values.items()}
    guest = guest_key.derive("guest key id").hex() if guest_key is not None else ""
    parts = [
        [name, kind.value, fingerprints[name], guest if kind is Kind.SEALED else ""]
        for name in sorted(values)
        for kind in (vm.kind(name),)
    ]
    return Desired(
        digest=hmac.digest(key.derive("digest"), json.dumps(parts).encode(), "sha256").hex(),
        entries=tuple(
            ManifestEntry(name, vm.kind(name), fingerprints[name][:16]) for name in sorted(values)
        ),
        values=values,
        delivery=vm.delivery,
    )


def fingerprint(key: CredentialKey, vm: VmConfig, name: str, value: Secret) -> str:
    """64 hex digits that stand for a secret's value, the same in every VM that uses the secret.

    Bound to the secret's name in the source, so that two secrets of one value do not show it.
    """
    credential = vm.credentials[name]
    label = f"text/{vm.name}/{name}" if credential.secret is None else f"secret/{credential.secret}"
    return hmac.digest(key.derive("fingerprint"), label.encode() + b"\0" + value.reveal(), "sha256").hex()


def over_limit(vm: VmConfig, what: Desired, other_oem_bytes: int) -> str | None:
    """Which limit of the way into the guest a generation would break, with the remedy; None for none."""
    sizes = {
        name: len(oem_string(name, kind, _as_delivered(name, kind, value)).reveal()) + 1
        for name, value in what.values.items()
        for kind in (vm.kind(name),)
    }
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


def decide(now: Observed, *, grace_over: bool = True) -> Decision:
    """What to do about one VM.

    ``grace_over``: whether an active unit without a stamp has had time enough to leave one.
    """
    vm = now.vm
    match now.desired:
        case Refused(reasons, passing):
            return Decision(vm, State.REFUSED, reasons=reasons, look_again=passing)
        case Desired() as wanted:
            pass
    limit = over_limit(vm, wanted, now.stamp.other_oem_bytes if now.stamp is not None else 0)
    if limit is not None:
        return Decision(vm, State.REFUSED, reasons=(limit,))
    stale = now.sealed is None or now.sealed.digest != wanted.digest
    # The delivery alone differing is written for the next start, and restarts nothing: the guest would
    # get the same.
    seal = wanted if stale or now.sealed is None or now.sealed.delivery != wanted.delivery else None
    if now.unit is None:
        return Decision(vm, State.SEAL_DUE if seal else State.IN_STEP, seal=seal)
    return _running(now, wanted, seal, now.unit, grace_over=grace_over)


def _running(
    now: Observed, wanted: Desired, seal: Desired | None, unit: UnitState, *, grace_over: bool
) -> Decision:
    vm = now.vm
    running = _running_digest(now, unit)
    if not unit.is_loaded:
        return Decision(vm, State.NO_UNIT, seal=seal, reasons=(f"systemd has no unit {vm.unit}",))
    if unit.is_changing or (unit.is_active and running is None and not grace_over):
        return Decision(vm, State.CHANGING, seal=seal, look_again=True)
    if not unit.is_active:
        return Decision(vm, State.STOPPED, seal=seal)
    assume = None
    if now.attempt is not None and now.attempt.digest == wanted.digest:
        # Only a stamp tells that it has come right since: a restart of ours that left none proves nothing.
        stamped = now.stamp is not None and now.stamp.invocation_id == unit.invocation_id
        if not stamped or running != wanted.digest:
            state = State.HALTED if now.attempt.outcome == "halted" else State.FAILED
            return Decision(vm, state, seal=seal, reasons=(now.attempt.reason,))
    if running is None:
        # Started without us, or by a launcher that left no stamp: it has what was current before now.
        running = now.sealed.digest if now.sealed is not None else wanted.digest
        assume = Assumed(unit.invocation_id, running)
    if running == wanted.digest:
        return Decision(vm, State.SEAL_DUE if seal else State.IN_STEP, seal=seal, assume=assume)
    return Decision(vm, State.RESTART_DUE, seal=seal, restart=True, assume=assume)


def _running_digest(now: Observed, unit: UnitState) -> str | None:
    """What the present invocation was started with; a stamp of another one counts as none."""
    known = (now.stamp, now.assumed)
    return next((each.digest for each in known if each and each.invocation_id == unit.invocation_id), None)
