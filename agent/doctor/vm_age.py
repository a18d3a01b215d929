# SPDX-License-Identifier: MIT
"""Whether a VM's secrets have ended, end soon, or are older than they should be. No finding has a value."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from credferry.agent.doctor.finding import hint, ok
from credferry.agent.reconcile.aging import ends, since, warnings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from credferry.agent.config.model import VmConfig
    from credferry.agent.doctor.chain import Chain
    from credferry.agent.doctor.finding import Finding


def check(chain: Chain, vm: VmConfig) -> Iterator[Finding]:
    """Each secret of a VM that its producer should renew. Raises `UnseenError`."""
    observed, _ = chain.seen(vm)
    told = warnings(vm, since(observed, chain.store), ends(observed), time.time())
    for each in told:
        yield hint(
            "vm.age",
            each,
            vm=vm.name,
            why="credferry passes on what is published, and makes no new values",
            remedy="have its producer publish a new value",
        )
    if not told:
        yield ok("vm.age", "no secret has ended or is overdue", vm.name)
