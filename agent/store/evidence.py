# SPDX-License-Identifier: MIT
"""Evidence of what each start of a VM was given: root's copy of the manifest.

``ExecStartPre=`` of a VM's unit has root copy the manifest that PID 1 has just opened to
``/run/credferry-evidence/VM@INVOCATION``, and ``ExecStopPost=`` has root remove it. Only root can write
there. So neither a VM's user nor another VM of the same user can forge what a VM was started with.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from credferry.agent.untrusted import read_untrusted
from credferry.launcher.handoff import EVIDENCE_PARENT, HandoffError, Manifest, evidence_name

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
            names = os.listdir(self._path) if self._is_root_s() else []  # noqa: PTH208 (done in each cycle)
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
        path = self._path / evidence_name(vm, invocation_id)
        try:
            if not self._is_root_s():
                return None
            content = read_untrusted(path, limit=_SIZE_MAX, owners=_trusted(), below=self.runtime)
            manifest = Manifest.from_bytes(content)
        except (OSError, HandoffError):
            return None
        if manifest.vm != vm:
            return None
        evidence = Evidence(invocation_id, manifest.generation, manifest.digest, manifest.run)
        self._read[vm] = evidence
        return evidence

    @property
    def _path(self) -> Path:
        return self.runtime / EVIDENCE_PARENT

    def _is_root_s(self) -> bool:
        """Whether only root could write to the directory. Raises OSError where it does not exist."""
        status = os.lstat(self._path)
        is_own = stat.S_ISDIR(status.st_mode) and status.st_uid in _trusted()
        return is_own and not status.st_mode & _OTHERS_WRITE


def _trusted() -> set[int]:
    # The agent's own user could only deceive the agent itself, and cannot write there.
    return {0, os.geteuid()}
