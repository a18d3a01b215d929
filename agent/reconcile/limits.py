# SPDX-License-Identifier: MIT
"""Whether a generation fits into what the guest reads, and into what the launcher can pass on; pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from credferry.agent.reconcile.live import push_manifest_at_most
from credferry.agent.sealing.credential import sealed_size
from credferry.launcher.handoff import (
    INITRD_TOTAL_MAX,
    OEM_COUNT_MAX,
    PUSH_MANIFEST,
    SYSTEMD_READS_ALL_OEM_STRINGS,
    Channel,
    Kind,
    Secret,
    oem_string,
)

if TYPE_CHECKING:
    from credferry.agent.config.model import VmConfig
    from credferry.agent.reconcile.desired import Desired
    from credferry.launcher.handoff import Stamp

API_STRINGS_MAX = 48 << 10
"""Most bytes of OEM strings over the API, if the launcher has not reported the room that the VM really has.
cloud-hypervisor up to v53 takes a document of 51,200 bytes, and the rest of the VM's description needs some
of them."""

_FEWER = "pass fewer or smaller ones"
UNIT_TOTAL_MAX = (1 << 20) - (64 << 10)
"""Bytes of values that PID 1 can load for one unit: systemd's CREDENTIALS_TOTAL_SIZE_MAX
(src/core/exec-credential.c), without what the manifest and the prefixes of the names may take."""
_TOO_MANY_FOR_A_UNIT = (
    f"the credentials exceed {UNIT_TOTAL_MAX} bytes, the most that systemd loads for one unit"
)


@dataclass(frozen=True, slots=True)
class Excess:
    """A limit that a VM's credentials exceed, and the remedy."""

    message: str
    hint: str = _FEWER


@dataclass(frozen=True, slots=True)
class Room:
    """What limits a VM's strings besides its guest. ``strings`` is None if only the launcher can tell.

    Each string takes ``per_string`` bytes more than in the guest.
    """

    other_oem_bytes: int = 0
    strings: int | None = None
    per_string: int = 0


def room_of(report: Stamp | None, channel: Channel, *, may_run: bool) -> Room:
    """The room that a VM has, by the launcher's last report of a start.

    A VM that has never run has nothing to lose: its first start shows whether the strings fit.
    """
    other = report.other_oem_bytes if report is not None else 0
    if report is not None and report.room and report.channel is channel:
        return Room(other, report.room, channel.room_taken(0, 1))
    if channel is not Channel.API or (report is None and not may_run):
        return Room(other)
    return Room(other, API_STRINGS_MAX)


def over_limit(vm: VmConfig, what: Desired, room: Room) -> Excess | None:
    """Which delivery limit a generation would exceed; None if it exceeds none."""
    kinds = {name: vm.kind(name) for name in what.values}
    delivered = {name: _as_delivered(name, kinds[name], value) for name, value in what.values.items()}
    if vm.channel is Channel.DIRECTORY:
        total = sum(len(name) + len(value.reveal()) for name, value in delivered.items())
        return Excess(_TOO_MANY_FOR_A_UNIT) if total > UNIT_TOTAL_MAX else None
    if vm.live:
        is_sealed = bool(what.guest)
        kind, delivered[PUSH_MANIFEST] = push_manifest_at_most(vm.name, kinds, is_sealed=is_sealed)
        kinds[PUSH_MANIFEST] = kind
    sizes = {
        name: len(oem_string(name, kinds[name], value).reveal()) + 1
        for name, value in delivered.items()
        if what.delivery.is_oem(kinds[name])
    }
    in_initrd = sum(len(value.reveal()) for name, value in delivered.items() if name not in sizes)
    if in_initrd > INITRD_TOTAL_MAX:
        return Excess(
            f"the sealed credentials exceed {INITRD_TOTAL_MAX} bytes, the most that a guest takes from "
            "its initrd"
        )
    if not sizes:
        return None  # other strings of the VM are not the agent's to judge
    largest = max(sizes, key=lambda name: sizes[name])
    if len(sizes) > OEM_COUNT_MAX:
        return Excess(f"{len(sizes)} OEM strings, but SMBIOS takes at most {OEM_COUNT_MAX}", "pass fewer")
    if sum(sizes.values()) + room.other_oem_bytes > what.delivery.oem_total_max:
        is_old = vm.guest_systemd < SYSTEMD_READS_ALL_OEM_STRINGS
        return Excess(
            f"{largest}: with this credential the VM's OEM strings exceed {what.delivery.oem_total_max} "
            "bytes, the most that its guest's systemd reads",
            _FEWER + (", or set guest_systemd = 257 if it is that new" if is_old else ""),
        )
    taken = sum(sizes.values()) + room.per_string * len(sizes)
    if room.strings is not None and taken > room.strings:
        is_api = what.delivery.channel is Channel.API
        way = "cloud-hypervisor's API" if is_api else "an argument"
        return Excess(
            f"{largest}: with this credential the VM's OEM strings exceed {room.strings} bytes, the most "
            f"that {way} takes beside the VM's own configuration",
            _FEWER + (", or use a cloud-hypervisor later than 53" if is_api else ""),
        )
    return None


def _as_delivered(name: str, kind: Kind, value: Secret) -> Secret:
    return Secret(b"=" * sealed_size(name, value.reveal())) if kind is Kind.SEALED else value
