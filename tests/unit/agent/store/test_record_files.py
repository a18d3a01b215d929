# SPDX-License-Identifier: MIT
"""The small records beside the generations: each comes back as it was written, or not at all."""

from __future__ import annotations

import errno
import shutil
from unittest.mock import patch

from credferry.agent.sealing.keys import CredentialKey
from credferry.agent.store.generations import Store
from credferry.agent.store.record_access import RecordAccess
from credferry.agent.store.records import Assumed, Attempt, Outcome
from credferry.launcher.handoff import Channel, Stamp
from tests.support.generations import KEY, manifest


def test_small_records(store: Store) -> None:
    """What is known of a VM's invocation and last rollout is kept, and can be forgotten."""
    assert (store.assumed("web"), store.attempt("web")) == (None, None)
    store.assume("web", Assumed("a" * 32, "0" * 64))
    store.record_attempt("web", Attempt("0" * 64, Outcome.FAILED, "its unit is failed"))
    assert store.assumed("web") == Assumed("a" * 32, "0" * 64)
    assert store.attempt("web") == Attempt("0" * 64, Outcome.FAILED, "its unit is failed")
    store.record_attempt("web", None)
    (store.vm_directory("web") / "assumed.json").write_bytes(b"{")
    assert (store.assumed("web"), store.attempt("web")) == (None, None)


def test_the_first_report_of_an_invocation_counts(store: Store) -> None:
    """What a neighbour puts in its place later does not, also after the agent was started anew."""
    store.write(manifest(1), {})
    first = Stamp("web", 1, "1" * 64, "0" * 32, "a" * 32, Channel.API, 10)
    store.note_report("web", first)
    store.note_report("web", first.but(other_oem_bytes=60_000))
    again = Store(store.state, KEY)
    again.note_report("web", first.but(other_oem_bytes=60_000))
    assert again.reported("web", "a" * 32) == first
    assert again.reported("web", "b" * 32) is None
    later = first.but(invocation_id="b" * 32)
    again.note_report("web", later)
    assert again.reported("web", "b" * 32) == later


def test_noted_restarts(store: Store) -> None:
    """They come back for the VM that they were noted of, also after the agent was started anew."""
    assert store.restarts("web") == []
    store.record_restarts("web", [1.5, 2.5])
    assert Store(store.state, KEY).restarts("web") == [1.5, 2.5]
    assert store.restarts("db") == []
    (store.vm_directory("web") / "restarts.json").write_bytes(b'{"moments":"x"}')
    assert store.restarts("web") == []


def test_holds_and_attempts_can_be_let_go_twice(store: Store) -> None:
    """To release what is not held, and to forget what was not noted, is no error."""
    for _ in range(2):
        store.hold("web", held=True)
        assert store.is_held("web")
        assert not store.is_held("db")
        assert (store.vm_directory("web") / "held").read_bytes() == b""
    for _ in range(2):
        store.hold("web", held=False)
        store.record_attempt("web", None)
        assert not store.is_held("web")


def test_a_directory_that_was_removed_is_made_anew(store: Store) -> None:
    """That the store has made a VM's directory before does not mean that it is still there."""
    store.hold("web", held=True)
    shutil.rmtree(store.vm_directory("web"))
    store.hold("web", held=True)
    assert store.is_held("web")


def test_a_report_is_noted_whole_and_leaves_nothing_else(store: Store) -> None:
    """What a crash has left beside it is used up; where it cannot be noted, nothing fails."""
    report = Stamp("web", 1, "1" * 64, "0" * 32, "a" * 32, Channel.API, 10)
    store.note_report("web", report)
    assert store.reported("web", "a" * 32) is None
    directory = store.vm_directory("web")
    directory.mkdir(parents=True)
    (directory / ".reported.json.new").write_bytes(b"{")
    store.note_report("web", report)
    assert [path.name for path in directory.iterdir()] == ["reported.json"]
    assert store.reported("web", "a" * 32) == report


def test_records_are_read_in_terms_of_the_present_key(store: Store) -> None:
    """Renewed digests replace earlier ones of the same VM, at once and after the agent starts anew."""
    old, new = "1" * 64, "2" * (64 - len(KEY.digest_id)) + KEY.digest_id
    for vm in ("web", "db"):
        store.assume(vm, Assumed("a" * 32, old))
        store.record_attempt(vm, Attempt(old, Outcome.FAILED))
        assert store.renewed(vm) == {}
    store.record_renewed("web", {old: new})
    for each in (store, Store(store.state, KEY)):
        assert each.renewed("web") == {old: new}
        assert each.in_present_terms("web", "3" * 64) == "3" * 64
        assert each.assumed("web") == Assumed("a" * 32, new)
        assert each.attempt("web") == Attempt(new, Outcome.FAILED)
        assert each.assumed("db") == Assumed("a" * 32, old)
        assert each.attempt("db") == Attempt(old, Outcome.FAILED)
    other = Store(store.state, CredentialKey(b"the next"))
    assert other.in_present_terms("web", old) == old, "that was noted for another key"
    (store.vm_directory("web") / "renewed.json").unlink()
    assert store.renewed("web") == {old: new}, "the file is read once"


def test_renewed_digests_that_cannot_be_read_for_a_moment_are_read_again(store: Store) -> None:
    """An agent out of file descriptors does not take its VMs for others until its end."""
    store.record_renewed("web", {"1" * 64: "2" * 64})
    store._renewed.clear()
    with patch.object(RecordAccess, "_read", side_effect=OSError(errno.EMFILE, "Too many open files")):
        assert store.renewed("web") == {}
    assert store.renewed("web") == {"1" * 64: "2" * 64}


def test_renewed_digests_are_known_as_they_were_written(store: Store) -> None:
    """After the agent has written them, it does not read them again. Nobody else's change counts."""
    digests = {"1" * 64: "2" * 64}
    store.record_renewed("web", digests)
    digests.clear()
    (store.vm_directory("web") / "renewed.json").unlink()
    assert store.renewed("web") == {"1" * 64: "2" * 64}
