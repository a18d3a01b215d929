# SPDX-License-Identifier: MIT
"""The store: written whole, published by one rename, and nothing half-made ever current."""

from __future__ import annotations

import errno
import os
import re
import resource
import shutil
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from credferry.agent.errors import SealError, StoreError, UnsyncedStoreError
from credferry.agent.sealing.credential import PLAINTEXT_MAX, seal
from credferry.agent.sealing.keys import CredentialKey
from credferry.agent.store.generations import Store, rollout_lock
from credferry.agent.store.records import Assumed, Attempt, Outcome
from credferry.agent.untrusted import read_untrusted
from credferry.launcher.handoff import (
    GENERATION_MAX,
    Channel,
    Delivery,
    Kind,
    Manifest,
    ManifestEntry,
    Secret,
    Stamp,
    unit_credential,
)

if TYPE_CHECKING:
    from collections.abc import Callable

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


def numbers(store: Store) -> set[int]:
    """The generations that are there."""
    return {int(path.name) for path in (store.vm_directory("web") / "generations").iterdir()}


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
    assert numbers(store) == {6, 7, 8}
    store.write(manifest(9), {}, keep={6})
    store.write(manifest(10), {}, keep={6})
    assert numbers(store) == {6, 8, 9, 10}
    assert store.previous("web") == store.generation("web", 9)


@pytest.mark.parametrize("lacks", ["manifest", "value.A", "the content of value.A"])
def test_what_a_crash_left_half_written_takes_no_place_of_a_whole_generation(
    store: Store, lacks: str
) -> None:
    """As many whole generations are kept as ever, and what is half-written goes."""
    for number in range(1, 4):
        store.write(manifest(number, "A"), {"A": Secret(b"a")})
    left = store.vm_directory("web") / "generations" / "4"
    shutil.copytree(left.with_name("3"), left)
    if lacks in {"manifest", "value.A"}:
        (left / lacks).unlink()
    else:
        (left / "value.A").write_bytes(b"")
    store.write(manifest(5, "A"), {"A": Secret(b"a")})
    assert numbers(store) == {2, 3, 5}


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
    from credferry.agent.sealing.credential import (  # noqa: PLC0415 (only this test opens files by itself)
        unseal,
    )

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
            continue  # pruned below our feet, after three more generations
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


@pytest.mark.parametrize("entry", ["tmp", "\N{SUPERSCRIPT TWO}", str(GENERATION_MAX), "-3", "98"])
def test_what_is_no_generation_is_in_nobody_s_way(store: Store, entry: str) -> None:
    """Entries that the agent did not make are neither counted nor a reason to fail."""
    store.write(manifest(1), {})
    (store.vm_directory("web") / "generations" / entry).write_bytes(b"")
    store.write(manifest(2), {})
    assert store.next_number("web") == (99 if entry == "98" else 3)
    assert unbound(store.previous("web")) == manifest(1)


@pytest.mark.parametrize(
    ("digests", "spoilt", "back_to", "previous"),
    [
        ("", None, None, None),
        ("a", None, None, None),
        ("ab", None, None, 1),
        ("abc", None, None, 2),
        ("abb", None, None, 1),
        ("aaa", None, None, None),
        ("abc", 2, None, 1),
        ("abc", None, 2, 1),
        ("abc", None, 1, None),
    ],
    ids=[
        "nothing at all", "only one", "the one before", "the newest before", "the same again",
        "all the same", "one cannot be opened", "a newer one is not before", "no older one",
    ],
)  # fmt: skip
def test_the_previous_generation(
    store: Store, digests: str, spoilt: int | None, back_to: int | None, previous: int | None
) -> None:
    """It is the newest one before the current one that holds something else and can be opened."""
    for number, digest in enumerate(digests, 1):
        store.write(manifest(number).but(digest=digest * 64), {})
        store.write(manifest(number, vm="db").but(digest="d" * 64), {})
    if spoilt is not None:
        (store.vm_directory("web") / "generations" / str(spoilt) / "manifest").unlink()
    if back_to is not None:
        assert store.revert("web", back_to) is not None
    found = store.previous("web")
    assert (found and found.generation) == previous


def test_a_generation_by_its_number(store: Store) -> None:
    """Each generation that is kept can be opened; one that is gone, or another VM's, is None."""
    store.write(manifest(1, "A"), {"A": Secret(b"1")})
    store.write(manifest(2, "A"), {"A": Secret(b"2")})
    store.write(manifest(3, vm="db"), {})
    assert unbound(store.generation("web", 1)) == manifest(1, "A")
    assert store.generation("web", 3) is None
    assert store.generation("db", 1) is None


def test_the_way_back(store: Store) -> None:
    """An older generation becomes current again, with its values; one that is gone changes nothing."""
    store.write(manifest(1, "A"), {"A": Secret(b"1")})
    store.write(manifest(2, "A"), {"A": Secret(b"2")})
    assert store.revert("web", 7) is None
    assert store.values("web") == {"A": Secret(b"2")}
    assert unbound(store.revert("web", 1)) == manifest(1, "A")
    assert store.values("web") == {"A": Secret(b"1")}
    assert store.next_number("web") == 3


def test_times(store: Store) -> None:
    """When a generation was sealed, a VM held and an attempt noted is told by its file; else None."""
    assert (store.held_at("web"), store.attempted_at("web"), store.sealed_at(manifest(1))) == (None,) * 3
    for number in (1, 2):
        store.write(manifest(number), {})
    store.hold("web", held=True)
    store.record_attempt("web", Attempt("0" * 64, Outcome.FAILED))
    directory = store.vm_directory("web")
    for moment, name in enumerate(("generations/1", "generations/2", "held", "rollout.json"), 1_000):
        os.utime(directory / name, (0, moment))
    assert [store.sealed_at(manifest(number)) for number in (1, 2, 3)] == [1000.0, 1001.0, None]
    assert store.sealed_at(manifest(1, vm="db")) is None
    assert (store.held_at("web"), store.attempted_at("web")) == (1002.0, 1003.0)
    assert (store.held_at("db"), store.attempted_at("db")) == (None, None)


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


ACTS: dict[str, tuple[str, Callable[[Store], object]]] = {
    "write": ("generations/2", lambda store: store.write(manifest(2), {})),
    "revert": ("current", lambda store: store.revert("web", 1)),
    "hold": ("held", lambda store: store.hold("web", held=True)),
    "release": ("held", lambda store: store.hold("web", held=False)),
    "assume": ("assumed.json", lambda store: store.assume("web", Assumed("a" * 32, "0" * 64))),
    "attempt": ("rollout.json", lambda store: store.record_attempt("web", Attempt("0", Outcome.FAILED))),
    "forget": ("rollout.json", lambda store: store.record_attempt("web", None)),
    "restarts": ("restarts.json", lambda store: store.record_restarts("web", [1.0])),
}
"""What is written, and where, below a VM's directory."""


@pytest.mark.parametrize("act", ACTS)
def test_an_error_names_the_file_the_cause_and_the_remedy(store: Store, act: str) -> None:
    """Where something is in the way, the error says of which file, and nothing that was there is lost."""
    name, do = ACTS[act]
    store.write(manifest(1), {})
    path = store.vm_directory("web") / name
    # A directory with something in it is neither replaced nor removed by anything that writes files.
    path.unlink(missing_ok=True)
    (path / "in the way").mkdir(parents=True)
    if act == "revert":
        assert store.generation("web", 1) is not None
    with pytest.raises(
        StoreError, match=rf"^{re.escape(str(path))}: (Is a directory|File exists)"
    ) as caught:
        do(store)
    assert "writable file system" in (caught.value.hint or "")
    assert (path / "in the way").is_dir()


@pytest.mark.parametrize("act", ["write", "hold", "assume", "attempt", "restarts"])
def test_an_error_of_the_last_sync_names_the_file(
    store: Store, monkeypatch: pytest.MonkeyPatch, act: str
) -> None:
    """It is in place, and the error says of which file it may be undone."""
    name, do = ACTS[act]
    store.write(manifest(1), {})
    failing_sync(monkeypatch, store.vm_directory("web"))
    expected = rf"^{re.escape(str(store.vm_directory('web') / name))}: it is written.*No space left"
    with pytest.raises(UnsyncedStoreError, match=expected):
        do(store)


def test_a_value_that_cannot_be_read_is_named_by_its_generation(store: Store) -> None:
    """The error says which directory and why, and does not say what the value is."""
    store.write(manifest(1, "A"), {"A": Secret(CANARY)})
    directory = (store.vm_directory("web") / "current").resolve()
    (directory / "value.A").unlink()
    (directory / "value.A").mkdir()
    with pytest.raises(StoreError, match=rf"^{re.escape(str(directory))}: it is not a regular file"):
        store.values("web")


def test_nothing_is_left_of_a_generation_that_could_not_be_written(store: Store) -> None:
    """A generation of which a file cannot be written is removed, and the one before stays current."""
    store.write(manifest(1), {})
    generation = store.vm_directory("web") / "generations" / "2"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        with pytest.raises(StoreError, match=rf"^{re.escape(str(generation))}: File too large"):
            store.write(manifest(2), {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert numbers(store) == {1}
    assert unbound(store.current("web")) == manifest(1)


def test_nothing_is_left_of_a_generation_that_could_not_be_sealed(store: Store) -> None:
    """A value that systemd would not take leaves no half of a generation, however often it is tried."""
    store.write(manifest(1), {})
    for _ in range(2):
        with pytest.raises(SealError):
            store.write(manifest(2, "A"), {"A": Secret(bytes(PLAINTEXT_MAX + 1))})
        assert numbers(store) == {1}
    assert unbound(store.current("web")) == manifest(1)


def test_a_half_written_generation_that_cannot_be_removed_is_an_error_like_others(store: Store) -> None:
    """Without a descriptor left, neither writing nor removing works; the next number is then used."""
    store.write(manifest(1), {})
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        with pytest.raises(StoreError, match="Too many open files"):
            store.write(manifest(2), {})
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert unbound(store.current("web")) == manifest(1)
    store.write(manifest(store.next_number("web")), {})
    assert unbound(store.current("web")) == manifest(3)


@pytest.mark.parametrize("file", ["manifest", "value.A"])
def test_a_file_that_was_sealed_under_another_name_is_refused(store: Store, file: str) -> None:
    """The name is sealed with the content: systemd would not open such a file either."""
    store.write(manifest(1, "A"), {"A": Secret(b"1")})
    path = store.vm_directory("web") / "current" / file
    bound = store.current("web")
    assert bound is not None
    content = bound.to_bytes() if file == "manifest" else b"1"
    path.write_bytes(seal(content, name=unit_credential(file), key=KEY))
    assert store.values("web") == {"A": Secret(b"1")}
    path.write_bytes(seal(content, name=unit_credential("value.B"), key=KEY))
    with pytest.raises((StoreError, SealError)):
        store.values("web")


def test_what_was_opened_is_not_opened_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look at VMs of which nothing has changed reads no file, and sees at once where one has."""
    report = Stamp("web", 1, "1" * 64, "0" * 32, "a" * 32, Channel.API, 10)
    store.write(manifest(1), {})
    store.write(manifest(1, vm="db"), {})
    read: list[Path] = []

    def counted(path: Path, *, limit: int, below: Path) -> bytes:
        read.append(path)
        return read_untrusted(path, limit=limit, below=below)

    def look() -> int:
        read.clear()
        for vm in ("web", "db"):
            assert store.current(vm) is not None
            store.note_report(vm, report)
        return len(read)

    monkeypatch.setattr("credferry.agent.store.generations.read_untrusted", counted)
    assert look() == 4
    assert look() == 0
    store.write(manifest(2), {})
    assert look() == 1
    assert unbound(store.current("web")) == manifest(2)
    (store.vm_directory("web") / "current" / "manifest").write_bytes(b"rubbish")
    assert store.current("web") is None


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


def test_a_lock_keeps_others_out_until_it_is_let_go(store: Store) -> None:
    """Who does not wait is told so, who waits gets it afterwards; locks of other names are others."""
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


RECORDS = ("assumed.json", "rollout.json", "restarts.json", "reported.json")


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
    store.note_report("web", Stamp("web", 1, "1" * 64, "0" * 32, "a" * 32, Channel.API, 10))
    directory = store.vm_directory("web")
    for name in RECORDS:
        _planted(directory / name, what)
    assert (store.assumed("web"), store.attempt("web"), store.restarts("web")) == (None, None, [])
    assert store.reported("web", "a" * 32) is None
    _planted(directory / "generations" / "1" / "manifest", what)
    assert Store(store.state, KEY).current("web") is None
    with pytest.raises(StoreError):
        Store(store.state, KEY).values("web")


@pytest.mark.parametrize(
    "target", ["/etc", "..", "generations", "generations/1/..", "../db/generations/1", "x/1"]
)
def test_current_leads_to_a_generation_of_the_vm_or_nowhere(store: Store, target: str) -> None:
    """A link that leads anywhere else counts as none, even to what could be opened."""
    store.write(manifest(1, "A"), {"A": Secret(b"1")})
    current = store.vm_directory("web") / "current"
    current.unlink()
    current.symlink_to(target)
    assert store.current("web") is None


def test_a_lock_that_is_a_fifo_or_a_link_is_no_trap(store: Store) -> None:
    """Taking a lock never waits for a FIFO's other end, and follows no link."""
    store.state.mkdir(parents=True, exist_ok=True)
    os.mkfifo(store.state / "seal.lock")
    with store.lock() as had:
        assert had
    (store.state / "other.lock").symlink_to("/etc/hostname")
    with pytest.raises(StoreError), store.lock("other.lock"):
        pass


@pytest.mark.parametrize("key", [KEY, CredentialKey(b"the next")], ids=["the same key", "another key"])
def test_whole_generations_stay_after_the_agent_starts_anew(store: Store, key: CredentialKey) -> None:
    """A new process keeps the whole generations that are there, also those of an earlier key."""
    for number in range(1, 4):
        store.write(manifest(number, "A"), {"A": Secret(b"a")})
    Store(store.state, key).write(manifest(4, "A"), {"A": Secret(b"a")})
    assert numbers(store) == {2, 3, 4}


@pytest.mark.parametrize(
    ("digest", "asked", "found"),
    [("a", 1, 1), ("a", 3, 3), ("a", 2, 3), ("a", 0, 3), ("b", 9, 2), ("c", 1, 0)],
    ids=["the number asked", "it is the newest", "it differs", "no number", "it is gone", "no such digest"],
)
def test_a_generation_is_found_by_its_digest(store: Store, digest: str, asked: int, found: int) -> None:
    """The number that was asked for comes first, then the newest of the same digest; 0 means none."""
    for number, each in enumerate("aba", start=1):
        store.write(manifest(number).but(digest=each * 64), {})
    store.write(manifest(4, vm="db").but(digest="c" * 64), {})
    assert store.find("web", digest * 64, asked) == found


@pytest.mark.parametrize(
    ("target", "number"),
    [(None, 0), ("generations/12", 12), ("generations/x", 0), ("generations/\N{SUPERSCRIPT TWO}", 0)],
)
def test_the_current_number_is_what_the_link_names(store: Store, target: str | None, number: int) -> None:
    """It is known without opening the generation, and is 0 where the link names no number."""
    store.vm_directory("web").mkdir(parents=True)
    if target is not None:
        (store.vm_directory("web") / "current").symlink_to(target)
    assert store.current_number("web") == number


def test_values_are_of_the_generation_that_is_asked_for(store: Store) -> None:
    """An older generation's values can be read beside the current ones."""
    for number, value in enumerate((b"old", b"new"), start=1):
        store.write(manifest(number, "A"), {"A": Secret(value)})
    assert store.values("web", 1) == {"A": Secret(b"old")}
    assert store.values("web") == {"A": Secret(b"new")}


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
