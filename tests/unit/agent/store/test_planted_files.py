# SPDX-License-Identifier: MIT
"""Files that the agent's user can plant in the store, where root's verbs read it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from credferry.agent.errors import StoreError
from credferry.agent.store.generations import Store
from credferry.agent.store.records import Assumed, Attempt, Claim, LastTurn, Outcome
from credferry.launcher.handoff import Channel, Secret, Stamp
from tests.support.generations import KEY, manifest

if TYPE_CHECKING:
    from pathlib import Path

RECORDS = (
    "assumed.json",
    "rollout.json",
    "restarts.json",
    "last.json",
    "slot.json",
    "reported.json",
    "worked.json",
)


def _planted(path: Path, what: str) -> None:
    """Put something in a file's place that its reader must not follow, wait for, or take in.

    A link leads to what the file held: whoever follows it reads a good record.
    """
    content = path.read_bytes()
    path.unlink()
    match what:
        case "a FIFO":
            os.mkfifo(path)
        case "a link":
            theirs = path.parents[2] / f"{path.name}.theirs"
            theirs.write_bytes(content)
            path.symlink_to(theirs)
        case "a device":
            path.symlink_to("/dev/zero")
        case "a directory":
            path.mkdir()
        case "an endless file":
            with path.open("wb") as file:
                file.truncate(1 << 30)


# The link is first: without the guarded open a FIFO keeps the test waiting, and a device fills the memory.
@pytest.mark.parametrize("what", ["a link", "a FIFO", "a device", "a directory", "an endless file"])
def test_what_the_agent_s_user_can_plant_is_taken_for_nothing(store: Store, what: str) -> None:
    """Root's verbs read the store too: no file there makes them wait, follow a link, or fill the memory."""
    store.write(manifest(1, "A"), {"A": Secret(b"1")})
    store.assume("web", Assumed("a" * 32, "0" * 64))
    store.record_attempt("web", Attempt("0" * 64, Outcome.FAILED))
    store.record_restarts("web", [1.0])
    store.record_last_turn("web", LastTurn(1.0, 2.0))
    store.record_claim("web", Claim("web", "h1"))
    store.note_report("web", Stamp("web", 1, "1" * 64, "0" * 32, "a" * 32, Channel.API, 10))
    store.note_worked("web", 1, "0" * 64)
    directory = store.vm_directory("web")
    for name in RECORDS:
        _planted(directory / name, what)
    assert (store.assumed("web"), store.attempt("web"), store.restarts("web")) == (None, None, [])
    assert store.last_turn("web") is None
    assert store.claim("web") is None
    assert store.worked("web") == []
    assert store.reported("web", "a" * 32) is None
    _planted(directory / "generations" / "1" / "manifest", what)
    assert Store(store.state, KEY).current("web") is None
    with pytest.raises(StoreError):
        Store(store.state, KEY).values("web")


def test_a_state_directory_behind_a_link_is_read(tmp_path: Path) -> None:
    """Only root can make links above the state directory, as systemd does, so the store follows those."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to("elsewhere")
    store = Store(tmp_path / "link" / "state", KEY)
    store.write(manifest(1, "A"), {"A": Secret(b"1")})
    store.assume("web", Assumed("a" * 32, "0" * 64))
    assert store.values("web") == {"A": Secret(b"1")}
    assert store.assumed("web") == Assumed("a" * 32, "0" * 64)


def test_a_directory_that_is_a_link_is_taken_for_nothing(store: Store) -> None:
    """A VM's directory below the state directory may be a link to another VM's: nothing in it counts."""
    store.write(manifest(1, "A"), {"A": Secret(b"1")})
    store.assume("web", Assumed("a" * 32, "0" * 64))
    directory = store.vm_directory("web")
    directory.rename(directory.with_name("away"))
    directory.symlink_to("away")
    again = Store(store.state, KEY)
    assert again.current("web") is None
    assert again.assumed("web") is None
    with pytest.raises(StoreError):
        again.values("web")
