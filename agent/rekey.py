# SPDX-License-Identifier: MIT
"""Another credential key of the host: all is sealed anew, and what VMs run is known all the same.

Digests are keyed, so those of two keys cannot be compared. While the old key is at hand, what it told is
written down in terms of the new one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.desired import KEY_DIGITS, Desired
from agent.notes import Assumed
from agent.reconcile import running_digest

if TYPE_CHECKING:
    from pathlib import Path

    from agent.observe import Look
    from agent.store import Store

Identity = tuple[int, int, int, int]


def identity(path: Path) -> Identity | None:
    """What differs once a file was replaced or written; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def carry_over(before: Look, after: Look, store: Store) -> None:
    """Write down what active VMs run, from a look by the old key, for the store of the new one.

    A VM that was behind stays behind. Raises `StoreError`.
    """
    for old, new in zip(before.observed, after.observed, strict=True):
        if old.unit is None or not isinstance(old.desired, Desired) or not isinstance(new.desired, Desired):
            continue
        running = running_digest(old, old.unit, old.desired)
        if running is None:
            continue
        # Published anew between the two looks, the new digest would be another value's.
        is_in_step = running == old.desired.digest and old.desired.values == new.desired.values
        digest = new.desired.digest
        if not is_in_step:
            digest = "0" * (len(digest) - KEY_DIGITS) + digest[-KEY_DIGITS:]
        store.assume(new.vm.name, Assumed(old.unit.invocation_id, digest))
