# SPDX-License-Identifier: MIT
"""Locks exclude others, and no file in their place is a trap."""

from __future__ import annotations

import os
import re
import threading
import time
from pathlib import Path

import pytest

from credferry.agent.errors import StoreError
from credferry.agent.store.generations import Store
from credferry.agent.store.locks import rollout_lock
from tests.support.generations import KEY


def test_a_lock_keeps_others_out_until_it_is_let_go(store: Store) -> None:
    """A caller that does not wait gets False; one that waits gets the lock later. Each name has its lock."""
    other = Store(store.state, KEY)
    order: list[str] = []

    def wait() -> None:
        with other.lock() as had:
            order.append(f"waited, {had}")

    waiter = threading.Thread(target=wait)
    with store.lock() as had:
        assert had
        with other.lock(wait=False) as also:
            assert not also
        with other.lock(rollout_lock("web"), wait=False) as also:
            assert also
        with other.lock(rollout_lock("web"), wait=False) as also:
            assert also, "it was let go"
        waiter.start()
        deadline = time.monotonic() + 20
        inode = f":{(store.state / 'seal.lock').stat().st_ino} "
        while time.monotonic() < deadline and not any(
            "->" in line and inode in line for line in Path("/proc/locks").read_text().splitlines()
        ):
            pass
        order.append("let go")
    waiter.join()
    assert order == ["let go", "waited, True"]
    with other.lock(wait=False) as had:
        assert had
    assert (store.state / "seal.lock").stat().st_mode & 0o777 == 0o600


def test_a_lock_that_cannot_be_had_is_an_error(tmp_path: Path) -> None:
    """A state directory that cannot be made is named, as is a lock that is no file."""
    (tmp_path / "file").write_bytes(b"")
    with (
        pytest.raises(StoreError, match=rf"^{re.escape(str(tmp_path))}/file/state/seal\.lock: File exists"),
        Store(tmp_path / "file" / "state", KEY).lock(),
    ):
        pass
    (tmp_path / "state" / "seal.lock").mkdir(parents=True)
    with (
        pytest.raises(StoreError, match=r"state/seal\.lock: Is a directory"),
        Store(tmp_path / "state", KEY).lock(),
    ):
        pass


def test_a_lock_that_is_a_fifo_or_a_link_is_no_trap(store: Store) -> None:
    """Taking a lock never waits for a FIFO's other end, and follows no link."""
    store.state.mkdir(parents=True, exist_ok=True)
    os.mkfifo(store.state / "seal.lock")
    with store.lock() as had:
        assert had
    (store.state / "other.lock").symlink_to("/etc/hostname")
    with pytest.raises(StoreError), store.lock("other.lock"):
        pass
