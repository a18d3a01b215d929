# SPDX-License-Identifier: MIT
"""The store: written whole, published by one rename, and nothing half-made ever current."""

from __future__ import annotations

import errno
import os
import resource
import threading
from typing import TYPE_CHECKING

import pytest

from agent.errors import StoreError, UnsyncedStoreError
from agent.keys import CredentialKey
from agent.notes import Assumed, Attempt, Outcome
from agent.store import KEEP, Store
from launcher.handoff import Channel, Delivery, Kind, Manifest, ManifestEntry, Secret, Stamp

if TYPE_CHECKING:
    from pathlib import Path

KEY = CredentialKey(b"k" * 4096)
CANARY = b"canary-0451"


def manifest(number: int, *names: str, vm: str = "web") -> Manifest:
    """A generation's manifest."""
    entries = tuple(ManifestEntry(name, Kind.PLAIN, "0" * 16) for name in names)
    return Manifest(vm, number, f"{number:064x}", "0" * 32, Delivery(), entries)


def unbound(written: Manifest | None) -> Manifest:
    """A manifest of the store's, without what binds it to its values."""
    assert written is not None
    return written.but(key="", credentials=tuple(entry.but(digest="") for entry in written.credentials))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(tmp_path / "state", KEY)


def test_what_is_written_is_current(store: Store) -> None:
    """Manifest and values come back; numbers go up; nothing on disk holds a value or is open to others."""
    assert store.current("web") is None
    assert store.next_number("web") == 1
    store.write(manifest(1, "A", "B"), {"A": Secret(CANARY), "B": Secret(b"2")})
    assert unbound(store.current("web")) == manifest(1, "A", "B")
    assert store.values("web") == {"A": Secret(CANARY), "B": Secret(b"2")}
    assert store.next_number("web") == 2
    for path in store.state.rglob("*"):
        if not path.is_symlink():
            assert path.stat().st_mode & 0o077 == 0
        if path.is_file():
            assert CANARY not in path.read_bytes()


def test_old_generations_are_pruned(store: Store) -> None:
    """The last few are kept, and what a crash left half-written goes."""
    for number in range(1, 8):
        store.write(manifest(number), {})
    (store.vm_directory("web") / "generations" / "99").mkdir()
    store.write(manifest(8), {})
    names = {path.name for path in (store.vm_directory("web") / "generations").iterdir()}
    assert names == {str(number) for number in range(9 - KEEP, 9)}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda current: (current / "manifest").unlink(),
        lambda current: (current / "value.A").unlink(),
        lambda current: (current / "value.B").write_bytes(b""),
        lambda current: (current / "manifest").write_bytes(b"rubbish"),
        lambda current: current.unlink(),
    ],
    ids=["no manifest", "a value is missing", "a value too many", "rubbish", "no link"],
)
def test_a_spoiled_generation_counts_as_none(store: Store, spoil) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001 (a table of lambdas)
    """What a start could not use is not taken for sealed: it will be sealed again."""
    store.write(manifest(1, "A"), {"A": Secret(b"1")})
    spoil(store.vm_directory("web") / "current")
    assert store.current("web") is None
    store.write(manifest(store.next_number("web"), "A"), {"A": Secret(b"1")})
    assert store.current("web") is not None


def test_another_keys_generation_counts_as_none(store: Store) -> None:
    """After a host key is replaced, everything is sealed again."""
    store.write(manifest(1), {})
    assert Store(store.state, CredentialKey(b"other")).current("web") is None


def test_another_vms_generation_counts_as_none(store: Store) -> None:
    """A generation copied from one VM to another is not that VM's."""
    store.write(manifest(1, vm="db"), {})
    store.vm_directory("db").rename(store.vm_directory("web"))
    assert store.current("web") is None


def test_a_failed_write_leaves_the_last_good_generation(store: Store) -> None:
    """Where a write fails, what was current still is, and nothing half-made is left."""
    store.write(manifest(1, "A"), {"A": Secret(b"1")})
    (store.vm_directory("web") / "generations" / "2").write_bytes(b"in the way")
    with pytest.raises(StoreError, match=os.strerror(errno.EEXIST)) as caught:
        store.write(manifest(2, "A"), {"A": Secret(CANARY)})
    assert CANARY.decode() not in f"{caught.value}{caught.value.hint}"
    assert unbound(store.current("web")) == manifest(1, "A")


def test_readers_never_see_a_mix(store: Store) -> None:
    """A reader that opens the current directory once, as PID 1 does, sees one generation whole."""
    store.write(manifest(1, "A", "B"), {"A": Secret(b"1"), "B": Secret(b"1")})
    stop = threading.Event()

    def write_all() -> None:
        for number in range(2, 60):
            value = Secret(str(number).encode())
            store.write(manifest(number, "A", "B"), {"A": value, "B": value})
        stop.set()

    writer = threading.Thread(target=write_all)
    writer.start()
    from agent.sealing import unseal  # noqa: PLC0415 (only this test opens files by itself)

    reads = 0
    while not stop.is_set():
        directory = os.open(store.vm_directory("web") / "current", os.O_RDONLY | os.O_DIRECTORY)
        try:
            seen = set()
            for name in ("value.A", "value.B"):
                with os.fdopen(os.open(name, os.O_RDONLY, dir_fd=directory), "rb") as file:
                    seen.add(unseal(file.read(), name=f"credferry_{name}", key=KEY))
            assert len(seen) == 1
            reads += 1
        except FileNotFoundError:
            continue  # pruned below our feet, after KEEP more generations
        finally:
            os.close(directory)
    writer.join()
    assert reads > 0


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


def failing_sync(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    """Have the kernel refuse to sync one directory, as btrfs does where it is full."""
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if os.path.samestat(os.fstat(descriptor), directory.stat()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


def test_a_published_generation_stays_where_its_last_sync_fails(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``current`` names the new generation by then: it is kept, whole, and the error is told."""
    store.write(manifest(1, "A"), {"A": Secret(b"one")})
    failing_sync(monkeypatch, store.vm_directory("web"))
    with pytest.raises(UnsyncedStoreError, match="power failure"):
        store.write(manifest(2, "A"), {"A": Secret(b"two")})
    assert unbound(store.current("web")) == manifest(2, "A")
    assert store.values("web") == {"A": Secret(b"two")}


def test_a_generation_is_not_published_where_descriptors_are_lacking(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is opened after ``current`` was renamed: what is lacking shows before."""
    store.write(manifest(1, "A"), {"A": Secret(b"one")})
    real, limits = os.rename, resource.getrlimit(resource.RLIMIT_NOFILE)

    def rename(*arguments: object, **options: object) -> None:
        real(*arguments, **options)  # type: ignore[arg-type]  # as it was called
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))

    monkeypatch.setattr(os, "rename", rename)
    try:
        store.write(manifest(2, "A"), {"A": Secret(b"two")})
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert unbound(store.current("web")) == manifest(2, "A")


def test_small_records_are_in_place_where_their_last_sync_fails(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hold, a noted restart and a way back hold though the last sync fails, and the error says so."""
    store.write(manifest(1), {})
    store.write(manifest(2), {})
    failing_sync(monkeypatch, store.vm_directory("web"))
    attempt = Attempt("0" * 64, Outcome.FAILED)
    with pytest.raises(UnsyncedStoreError, match="power failure"):
        store.hold("web", held=True)
    with pytest.raises(UnsyncedStoreError, match="power failure"):
        store.record_attempt("web", attempt)
    with pytest.raises(UnsyncedStoreError, match="power failure"):
        store.revert("web", 1)
    assert store.is_held("web")
    assert store.attempt("web") == attempt
    assert unbound(store.current("web")) == manifest(1)


def test_a_number_that_is_taken_costs_nothing_that_is_there(store: Store) -> None:
    """A generation that cannot be made, as its number is another's, leaves that one whole."""
    store.write(manifest(1), {})
    with pytest.raises(StoreError, match="File exists"):
        store.write(manifest(1), {})
    assert unbound(store.current("web")) == manifest(1)


def swapped(store: Store, source: str, target: str) -> StoreError:
    """What is said once one file has been copied over another."""
    vms = store.state / "vms"
    (vms / target).write_bytes((vms / source).read_bytes())
    with pytest.raises(StoreError) as caught:
        store.values("web")
    assert CANARY.decode() not in f"{caught.value}{caught.value.hint}"
    return caught.value


@pytest.fixture
def bound(store: Store) -> Store:
    """Two generations of one VM, and one of another; the values of A are all different."""
    store.write(manifest(1, "A", "B"), {"A": Secret(b"old"), "B": Secret(b"b")})
    store.write(manifest(2, "A", "B"), {"A": Secret(CANARY), "B": Secret(b"b")})
    store.write(manifest(2, "A", "B", vm="db"), {"A": Secret(b"of db"), "B": Secret(b"b")})
    return store


@pytest.mark.parametrize(
    "source",
    ["db/generations/2/value.A", "web/generations/1/value.A"],
    ids=["of another VM", "of an older generation"],
)
def test_a_single_file_of_somewhere_else_is_refused(bound: Store, source: str) -> None:
    """Sealed with the same key and under the same name, it opens; it is not the manifest's."""
    assert "value.A: it is not the value" in str(swapped(bound, source, "web/generations/2/value.A"))


def test_the_same_value_of_somewhere_else_is_no_harm(bound: Store) -> None:
    """Then nothing is passed off as something else, and the VM gets what it should get."""
    vms = bound.state / "vms"
    (vms / "web/current/value.B").write_bytes((vms / "db/current/value.B").read_bytes())
    assert bound.values("web")["B"] == Secret(b"b")


@pytest.mark.parametrize("source", ["db/generations/2", "web/generations/1"])
def test_a_manifest_of_somewhere_else_is_refused(bound: Store, source: str) -> None:
    """It is another VM's or another generation's, or the values are not its own."""
    swapped(bound, f"{source}/manifest", "web/generations/2/manifest")
    assert bound.current("web") is None


def test_two_generations_of_one_value_tell_nothing_by_their_digests(bound: Store) -> None:
    """Each generation has a key of its own, which nothing shows."""
    first, second = bound.current("web"), bound.current("db")
    assert first is not None
    assert second is not None
    assert first.key != second.key
    assert first.credentials[1].digest != second.credentials[1].digest
    assert first.key not in repr(first)
    assert first.credentials[0].digest not in repr(first)


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
