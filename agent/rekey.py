# SPDX-License-Identifier: MIT
"""Another credential key of the host: all is sealed anew, and what VMs run is known all the same.

Digests are keyed, so those of two keys cannot be compared. While the old key is at hand, what it told is
written down in terms of the new one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.desired import KEY_DIGITS, Desired
from agent.notes import Assumed
from agent.observe import Observer
from agent.reconcile import running_digest
from agent.store import Store

if TYPE_CHECKING:
    from pathlib import Path

    from agent.config import Config
    from agent.keys import CredentialKey
    from agent.reconcile import Observed
    from agent.units import SystemManager

Identity = tuple[int, int, int, int, int]


def identity(path: Path) -> Identity | None:
    """What differs once a file was replaced, written, or given another mode; None where there is none."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


@dataclass(slots=True)
class CarryOver:
    """Writes down what VMs run, known by the host's key before, in terms of the present key.

    A VM for which that cannot be done yet is done later: while systemd cannot be asked, it is not known
    which start is the VM's last one; while a secret is lacking, there is nothing to compare with.
    """

    key: CredentialKey
    """The key before."""
    left: set[str]
    """VMs that are still to be done."""

    def go_on(self, config: Config, store: Store, manager: SystemManager | None) -> None:
        """Do those for which it can be done now. Raises `StoreError`, `BusError`."""
        self.left &= config.vms.keys()
        if manager is None or not self.left:
            return
        vms = [config.vms[name] for name in sorted(self.left)]
        after = Observer(config, store)
        published = after.published(vms)  # once: what both keys make of it can then be compared
        before = Observer(config, Store(store.state, self.key)).look_at(published, vms, manager)
        for old, new in zip(before.observed, after.look_at(published, vms, manager).observed, strict=True):
            if isinstance(old.desired, Desired) and isinstance(new.desired, Desired):
                _carry_over(old, old.desired, new.desired, store)
                self.left.discard(old.vm.name)


def _carry_over(old: Observed, desired: Desired, desired_now: Desired, store: Store) -> None:
    """Write down what an active VM runs. A VM that was behind stays behind."""
    running = running_digest(old, old.unit, desired) if old.unit is not None else None
    if old.unit is None or running is None:
        return
    digest = desired_now.digest
    if running != desired.digest:
        digest = "0" * (len(digest) - KEY_DIGITS) + digest[-KEY_DIGITS:]
    generation = old.runs.generation if old.runs is not None else 0
    store.assume(old.vm.name, Assumed(old.unit.invocation_id, digest, generation))
