# SPDX-License-Identifier: MIT
"""One secret through 1,000 hosts, with a real etcd of three members: time, requests, and what holds.

``python -m tests.fleet [HOSTS [LIMIT ...]]`` prints one line for each limit, kills a member of etcd in the
midst of the last one, and then rolls a value that does not work. etcd's own history says how many slots were
held at each revision. It fails if one revision has more than the limit.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from credferry.agent.fleet import keys
from tests.support.etcd import RealCluster
from tests.support.numbers import Number, note
from tests.support.world.scale import GROUP, Run, Scale

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_MEMORY = Path("/dev/shm")


def roll(
    hosts: int,
    limit: int,
    *,
    works: Callable[[int], bool] = lambda _: True,
    killed_at: int | None = None,
) -> tuple[Run, list[int]]:
    """Roll a secret through hosts with an etcd of their own. Returns the run, and the slots by revision."""
    with tempfile.TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else None) as name:
        top = Path(name)
        cluster = RealCluster(top)
        try:
            at = {} if killed_at is None else {killed_at: lambda: cluster.kill(0)}
            found = Scale(top, cluster.urls, hosts, limit, works=works, at=at).run()
            return found, cluster.history(keys.slots(GROUP))
        finally:
            cluster.close()


def said(found: Run, held: list[int]) -> str:
    """A run in one line."""
    rate = 1000 * found.request_seconds / found.requests
    return (
        f"{found.hosts} hosts, limit {found.limit}: {found.restarted} restarted in {found.seconds:.0f} s of "
        f"simulated time, {found.requests / found.hosts:.1f} requests a host, {rate:.1f} ms a request; "
        f"at most {max(held)} slots held in {len(held)} revisions, at most {found.most_down} VMs down; "
        f"{found.tried} tried a value that does not work"
    )


def main(words: Iterable[str]) -> int:
    """Run what the arguments ask for; 1 if more slots were held than the limit, or a host was left out."""
    numbers = [int(word) for word in words]
    hosts, limits = (numbers or [1000])[0], numbers[1:] or [100, 10, 1]
    failures, revisions = 0, 0
    for limit in limits:
        killed_at = hosts // 2 if limit == limits[-1] else None
        found, held = roll(hosts, limit, killed_at=killed_at)
        sys.stdout.write(said(found, held) + "\n")
        sys.stdout.flush()
        failures += max(held) > limit or found.restarted != hosts
        revisions += len(held)
    for limit in limits:
        found, held = roll(hosts, limit, works=lambda _: False)
        sys.stdout.write(said(found, held) + "\n")
        sys.stdout.flush()
        failures += max(held) > limit or found.tried > limit or found.restarted > 0
        revisions += len(held)
    if not numbers:  # a part of it must not replace the numbers of the whole
        note(Number.FLEET_REVISIONS, revisions)
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
