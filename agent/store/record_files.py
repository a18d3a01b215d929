# SPDX-License-Identifier: MIT
"""Reads and writes the small records of a VM beside its generations. Each is one file.

::

    STATE/vms/VM/held              exists while an operator holds the VM
    STATE/vms/VM/assumed.json      what the running VM is assumed to run
    STATE/vms/VM/pushed.json       what its guest holds, where the agent has pushed to it
    STATE/vms/VM/rollout.json      the last rollout, where it has not succeeded
    STATE/vms/VM/renewed.json      digests of earlier host keys, with the present key
    STATE/vms/VM/restarts.json     the moments of the last restarts
    STATE/vms/VM/worked.json       the last generations that it has run well
    STATE/vms/VM/ages.json         since when its credentials have had their values
    STATE/vms/VM/last.json         when its last restart or push began or ended
    STATE/vms/VM/approved.json     what an operator last approved for it
    STATE/vms/VM/owed.json         the operator's unit that is still to run after its restart
    STATE/vms/VM/slot.json         the slot of its fleet that it has, or may have
    STATE/vms/VM/reported.json     the launcher's first report of the last start

A record that cannot be read counts as missing: the agent then finds out anew what it can. Code that takes
something away because a record is missing calls `RecordFiles.claim_and_attempt` instead.

One job: one pair of methods for each record.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from credferry.agent.errors import StoreError
from credferry.agent.store.files import replace_durably, store_error
from credferry.agent.store.record_access import RecordAccess
from credferry.agent.store.records import (
    Ages,
    Approved,
    Assumed,
    Attempt,
    Claim,
    LastTurn,
    Owed,
    Pushed,
    Renewed,
    Restarts,
    Worked,
    WorkedWith,
)
from credferry.launcher.handoff import HandoffError, Stamp

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from credferry.agent.sealing.keys import CredentialKey

WORKED_MAX = 2
"""So many generations that a VM has run well are noted, and kept: what it runs, and what it ran before."""


@dataclass(frozen=True, slots=True)
class RecordFiles(RecordAccess):
    """The records of all VMs below one state directory. Its directories have mode 0700."""

    key: CredentialKey
    _reported: dict[str, str] = field(default_factory=dict)
    """By VM: the invocation whose report is noted."""
    _renewed: dict[str, Mapping[str, str]] = field(default_factory=dict)
    """By VM: see `renewed`."""
    _worked: dict[str, WorkedWith] = field(default_factory=dict)
    """By VM: what `note_worked` noted last."""

    def is_held(self, vm: str) -> bool:
        """Whether an operator holds the VM."""
        return os.access(f"{self.state}/vms/{vm}/held", os.F_OK)  # raises no exception; called in each cycle

    def hold(self, vm: str, *, held: bool) -> None:
        """Hold a VM or, with False, release it. A hold survives a reboot. Raises `StoreError`."""
        path = self.vm_directory(vm) / "held"
        try:
            if held:
                self._make(path.parent)
                replace_durably(path, b"")
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise store_error(path, error) from None

    def held_at(self, vm: str) -> float | None:
        """When an operator put the VM on hold, in seconds since 1970; None where it is not held."""
        return written_at(self.vm_directory(vm) / "held")

    def assumed(self, vm: str) -> Assumed | None:
        """What an invocation of the VM without evidence is assumed to run; None where nothing is noted."""
        noted = self._load(vm, "assumed.json", Assumed)
        return noted and msgspec.structs.replace(noted, digest=self.in_present_terms(vm, noted.digest))

    def assume(self, vm: str, assumed: Assumed) -> None:
        """Write what `assumed` returns. Raises `StoreError`."""
        self._save(vm, "assumed.json", assumed)

    def pushed(self, vm: str) -> Pushed | None:
        """What the guest of an invocation of the VM holds since a push; None where nothing is noted."""
        noted = self._load(vm, "pushed.json", Pushed)
        return noted and msgspec.structs.replace(noted, digest=self.in_present_terms(vm, noted.digest))

    def record_pushed(self, vm: str, pushed: Pushed | None) -> None:
        """Write what `pushed` returns or, with None, remove it. Raises `StoreError`."""
        self._write(vm, "pushed.json", pushed)

    def attempt(self, vm: str) -> Attempt | None:
        """The VM's last rollout, where it has not succeeded; else None."""
        noted = self._load(vm, "rollout.json", Attempt)
        return noted and self._in_present_terms(vm, noted)

    def _in_present_terms(self, vm: str, noted: Attempt) -> Attempt:
        return msgspec.structs.replace(noted, digest=self.in_present_terms(vm, noted.digest))

    def record_attempt(self, vm: str, attempt: Attempt | None) -> None:
        """Write what `attempt` returns or, with None, remove it. Raises `StoreError`."""
        self._write(vm, "rollout.json", attempt)

    def worked(self, vm: str) -> list[WorkedWith]:
        """The last generations that the VM has run well, the latest last; at most `WORKED_MAX`."""
        noted = (self._load(vm, "worked.json", Worked) or Worked()).generations
        return [
            WorkedWith(each.generation, self.in_present_terms(vm, each.digest))
            for each in noted[-WORKED_MAX:]
        ]

    def note_worked(self, vm: str, generation: int, digest: str) -> None:
        """Write that the VM runs a generation well now. Writes nothing if that is noted.

        A power failure may undo it. The next look then writes it again.
        """
        now = WorkedWith(generation, digest)
        if self._worked.get(vm) == now:
            return
        worked = self.worked(vm)
        with suppress(OSError):
            if worked[-1:] != [now]:
                others = [each for each in worked if each.digest != digest]
                self._note(vm, "worked.json", msgspec.json.encode(Worked([*others, now][-WORKED_MAX:])))
            self._worked[vm] = now

    def attempted_at(self, vm: str) -> float | None:
        """When `attempt` was last written, in seconds since 1970; None where there is none."""
        return written_at(self.vm_directory(vm) / "rollout.json")

    def in_present_terms(self, vm: str, digest: str) -> str:
        """Translate a digest of an earlier host key to the present key. Returns any other digest unchanged.

        The host may have an earlier key again, for example from a backup. Translations to the key that it
        had in between are then not used.
        """
        told = self.renewed(vm).get(digest)
        return told if told is not None and self.key.has_made(told) else digest

    def renewed(self, vm: str) -> Mapping[str, str]:
        """Known translations: from digests of earlier host keys to digests of the present key."""
        known = self._renewed.get(vm)
        if known is None:
            try:
                noted = self._load_surely(vm, "renewed.json", Renewed) or Renewed()
            except StoreError:  # the next call may read it
                return {}
            known = self._renewed[vm] = noted.digests
        return known

    def record_renewed(self, vm: str, digests: Mapping[str, str]) -> None:
        """Write what `renewed` returns. Raises `StoreError`."""
        self._save(vm, "renewed.json", Renewed(dict(digests)))
        self._renewed[vm] = dict(digests)

    def restarts(self, vm: str) -> list[float]:
        """The moments that `record_restarts` wrote last; empty where there are none."""
        return (self._load(vm, "restarts.json", Restarts) or Restarts()).moments

    def record_restarts(self, vm: str, moments: list[float]) -> None:
        """Write when the VM was restarted, in seconds since the host's boot. Raises `StoreError`."""
        self._save(vm, "restarts.json", Restarts(moments))

    def ages(self, vm: str) -> Mapping[str, float]:
        """What `note_ages` wrote last; empty where there is nothing."""
        return (self._load(vm, "ages.json", Ages) or Ages()).since

    def note_ages(self, vm: str, since: Mapping[str, float]) -> None:
        """Write since when credentials have had their values. A power failure may undo it.

        Writes nothing for a VM without a generation: all its values are as old as the first one.
        """
        with suppress(OSError):
            self._note(vm, "ages.json", msgspec.json.encode(Ages(dict(since))))

    def approved(self, vm: str) -> str:
        """The digest that an operator last approved for the VM; empty for none."""
        noted = self._load(vm, "approved.json", Approved)
        return self.in_present_terms(vm, noted.digest) if noted is not None else ""

    def approve(self, vm: str, digest: str) -> None:
        """Write what `approved` returns. Raises `StoreError`."""
        self._save(vm, "approved.json", Approved(digest))

    def owed(self, vm: str) -> Owed | None:
        """The operator's unit that is still to run after a restart of the VM; None for none."""
        return self._load(vm, "owed.json", Owed)

    def record_owed(self, vm: str, owed: Owed | None) -> None:
        """Write what `owed` returns or, with None, remove it. Raises `StoreError`."""
        self._write(vm, "owed.json", owed)

    def claim(self, vm: str) -> Claim | None:
        """The slot of a fleet that the VM has, or may have; None for none."""
        return self._load(vm, "slot.json", Claim)

    def record_claim(self, vm: str, claim: Claim | None) -> None:
        """Write what `claim` returns or, with None, remove it. Raises `StoreError`."""
        self._write(vm, "slot.json", claim)

    def claim_and_attempt(self, vm: str) -> tuple[Claim | None, Attempt | None]:
        """`claim` and `attempt`, for code that does something because they are missing.

        Raises `StoreError` for a record that is there and cannot be read.
        """
        attempt = self._load_surely(vm, "rollout.json", Attempt)
        return self._load_surely(vm, "slot.json", Claim), attempt and self._in_present_terms(vm, attempt)

    def claimed(self) -> list[str]:
        """Names of all VMs with a `claim`, also of those that no configuration names any more."""
        try:
            return sorted(path.parent.name for path in (self.state / "vms").glob("*/slot.json"))
        except OSError:
            return []

    def last_turn(self, vm: str) -> LastTurn | None:
        """What `record_last_turn` wrote last; None where nothing is noted."""
        return self._load(vm, "last.json", LastTurn)

    def record_last_turn(self, vm: str, last: LastTurn) -> None:
        """Write when a restart or push of the VM began or ended. Raises `StoreError`."""
        self._save(vm, "last.json", last)

    def reported(self, vm: str, invocation_id: str) -> Stamp | None:
        """The launcher's report of an invocation, as `note_report` wrote it; None where there is none."""
        noted = self.last_report(vm)
        return noted if noted is not None and noted.invocation_id == invocation_id else None

    def last_report(self, vm: str) -> Stamp | None:
        """The launcher's report of the last invocation that was noted; None where there is none."""
        try:
            return Stamp.from_bytes(self._read(self.vm_directory(vm) / "reported.json"))
        except (OSError, HandoffError):
            return None

    def note_report(self, vm: str, report: Stamp) -> None:
        """Write the first report of an invocation. A later report does not replace it, whoever makes it.

        The file need not survive a power failure, because the invocation does not survive one either.
        """
        if self._reported.get(vm) == report.invocation_id:
            return
        with suppress(OSError):
            if self.reported(vm, report.invocation_id) is None:
                self._note(vm, "reported.json", report.to_bytes())
            self._reported[vm] = report.invocation_id


def written_at(path: Path) -> float | None:
    """When a file or a directory was last changed, in seconds since 1970; None where it is missing."""
    try:
        return path.stat().st_mtime
    except OSError:
        return None
