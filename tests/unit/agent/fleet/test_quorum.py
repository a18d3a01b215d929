# SPDX-License-Identifier: MIT
"""A cluster without a quorum: its member still knows the slots, and gives none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from credferry.agent.fleet.etcd import Etcd
from credferry.agent.fleet.model import Granted, Holder, Unavailable
from tests.support.etcd import RealEtcd, call, free_port

if TYPE_CHECKING:
    from pathlib import Path


def test_a_member_without_a_quorum(tmp_path: Path) -> None:
    """A member that cannot reach the others answers nobody: not for a free slot, a held one, or a halt."""
    etcd = RealEtcd(tmp_path)
    try:
        me, other = Holder("h1", "web", "1" * 32), Holder("h2", "web", "2" * 32)
        assert etcd.engine().acquire("web", me, "r") == Granted(0)
        absent = f"http://127.0.0.1:{free_port()}"
        call(etcd.member(), "/cluster/member/add", peerURLs=[absent])
        engine = Etcd([etcd.member(seconds=0.5)])
        for found in (
            engine.acquire("web", other, "r"),
            engine.acquire("db", other, "r"),
            engine.acquire("web", me, "r"),
            engine.release("web", me),
            engine.halt("web", me, "r", "x"),
            engine.state("web"),
        ):
            assert isinstance(found, Unavailable)
            assert etcd.url in found.reason
    finally:
        etcd.kill()
