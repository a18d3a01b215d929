# SPDX-License-Identifier: MIT
"""Evidence of what each start of a VM, and its last push, was given: root's copy of the manifest.

``ExecStartPre=`` of a VM's unit has root copy the manifest that PID 1 has just opened to
``/run/credferry-evidence/VM@INVOCATION``, and ``ExecStopPost=`` has root remove it. Only root can write
there. So neither a VM's user nor another VM of the same user can forge what a VM was started with.
``credferry-push@VM.service`` has root write below ``/run/credferry-pushed`` in the same way.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from credferry.agent.untrusted import read_untrusted
from credferry.launcher.handoff import (
    EVIDENCE_PARENT,
    PUSHED_PARENT,
    HandoffError,
    Manifest,
    evidence_name,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_SIZE_MAX = 1 << 20  # systemd accepts no larger credential
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True, slots=True)
class Evidence:
    """What one invocation of a VM's unit was started with."""

    invocation_id: str
    generation: int
    digest: str
    run: str
    is_live: bool = False
    """Whether its guest got a manifest of its own, without which it takes no push."""


@dataclass(frozen=True, slots=True)
class EvidenceDirectory:
    """The evidence of all VMs. Each file is read once, because root's copies do not change."""

    runtime: Path
    _read: dict[str, Evidence] = field(default_factory=dict)
    """By VM: the evidence that was read last."""

    def invocations(self) -> Mapping[str, str]:
        """By VM: the invocation that has evidence; empty where a VM has evidence of several."""
        found: dict[str, str] = {}
        try:
            names = os.listdir(self._path) if _is_root_s(self._path) else []  # noqa: PTH208 (done in each cycle)
        except OSError:
            return found
        for name in names:
            vm, _, invocation = name.rpartition("@")
            found[vm] = "" if vm in found else invocation
        return found

    def of(self, vm: str, invocation_id: str) -> Evidence | None:
        """The evidence of one start; None where there is none, or where it cannot be trusted."""
        known = self._read.get(vm)
        if known is not None and known.invocation_id == invocation_id:
            return known
        if not invocation_id:
            return None
        manifest = self._manifest(EVIDENCE_PARENT, evidence_name(vm, invocation_id), vm)
        if manifest is None:
            return None
        evidence = Evidence(
            invocation_id, manifest.generation, manifest.digest, manifest.run, manifest.is_live
        )
        self._read[vm] = evidence
        return evidence

    def pushed(self, vm: str) -> Manifest | None:
        """What the VM's last push has brought to its guest; None where it failed, or none is kept.

        The guest has proved that it holds it. The VM may have been started again since. systemd may have
        opened another generation for each command of the push unit: only what was there before and after
        the push was pushed.
        """
        before = self._manifest(PUSHED_PARENT, f"{vm}@before", vm)
        after = self._manifest(PUSHED_PARENT, vm, vm)
        return after if before == after else None

    def _manifest(self, parent: str, name: str, vm: str) -> Manifest | None:
        """A copy that root keeps of a manifest of the VM; None where it cannot be trusted."""
        path = self.runtime / parent / name
        try:
            if not _is_root_s(path.parent):
                return None
            content = read_untrusted(path, limit=_SIZE_MAX, owners=_trusted(), below=self.runtime)
            manifest = Manifest.from_bytes(content)
        except (OSError, HandoffError):
            return None
        return manifest if manifest.vm == vm else None

    @property
    def _path(self) -> Path:
        return self.runtime / EVIDENCE_PARENT


def _is_root_s(directory: Path) -> bool:
    """Whether only root could write to a directory. Raises OSError where it does not exist."""
    status = os.lstat(directory)
    is_own = stat.S_ISDIR(status.st_mode) and status.st_uid in _trusted()
    return is_own and not status.st_mode & _OTHERS_WRITE


def _trusted() -> set[int]:
    # The agent's own user could only deceive the agent itself, and cannot write there.
    return {0, os.geteuid()}
