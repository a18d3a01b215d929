# SPDX-License-Identifier: MIT
"""Generations: written whole, published by one rename, and nothing half-made ever current."""

from __future__ import annotations

import errno
import os
import re
import resource
import shutil
import threading
from functools import partial
from typing import TYPE_CHECKING, NoReturn

import pytest

from credferry.agent.errors import SealError, StoreError, UnsyncedStoreError
from credferry.agent.sealing.credential import PLAINTEXT_MAX
from credferry.agent.sealing.keys import CredentialKey
from credferry.agent.store import generations
from credferry.agent.store.files import point
from credferry.agent.store.generations import Store
from credferry.agent.store.records import Attempt, Outcome
from credferry.agent.store.retention import KEEP
from credferry.agent.untrusted import read_untrusted
from credferry.launcher.handoff import Channel, Secret, Stamp
from tests.support.generations import CANARY, KEY, damage, failing_sync, manifest, numbers, unbound

if TYPE_CHECKING:
    from pathlib import Path

OTHER_KEY = CredentialKey(b"o" * 4096)


def refused(*_: object, **__: object) -> NoReturn:
    """A file system without hard links."""
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


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
    reads = 0

    def write_all() -> None:
        try:
            number = 1
            while number < 60 or (not reads and number < 2000):  # a slow reader must not come too late
                number += 1
                value = Secret(str(number).encode())
                store.write(manifest(number, "A", "B"), {"A": value, "B": value})
        finally:
            stop.set()

    writer = threading.Thread(target=write_all)
    writer.start()
    from credferry.agent.sealing.credential import (  # noqa: PLC0415 (only this test opens files by itself)
        unseal,
    )

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


def test_a_published_generation_stays_where_its_last_sync_fails(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``current`` names the new generation by then. The store keeps it whole, and raises the error."""
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


def test_a_number_that_is_taken_costs_nothing_that_is_there(store: Store) -> None:
    """A generation that cannot be made, as its number is another's, leaves that one whole."""
    store.write(manifest(1), {})
    with pytest.raises(StoreError, match="File exists"):
        store.write(manifest(1), {})
    assert unbound(store.current("web")) == manifest(1)


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


def test_no_way_back_to_values_that_do_not_open(store: Store) -> None:
    """One damaged file is that of all generations with the same value. None becomes current again."""
    for number, other in enumerate((b"1", b"2", b"3"), 1):
        store.write(manifest(number, "A", "B"), {"A": Secret(b"same"), "B": Secret(other)})
    damage(store.vm_directory("web") / "generations/1/value.A")
    assert not any(store.opens("web", number) for number in (1, 2, 3))
    assert [store.revert("web", number) for number in (1, 2)] == [None, None]
    assert store.current_number("web") == 3
    store.write(manifest(4, "A", "B"), {"A": Secret(b"same"), "B": Secret(b"3")})
    assert store.opens("web", 4), "what is damaged is not used again"


def test_times(store: Store) -> None:
    """The time of a sealing, a hold and an attempt is that of its file; None without one."""
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


def test_what_was_opened_is_not_opened_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look at VMs of which nothing has changed reads no file, and sees at once where one has."""
    report = Stamp("web", 1, "1" * 64, "0" * 32, "a" * 32, Channel.API, 10)
    store.write(manifest(1), {})
    store.write(manifest(1, vm="db"), {})
    read: list[Path] = []

    def counted(path: Path, *, limit: int, below: Path) -> bytes:
        read.append(path)
        return read_untrusted(path, limit=limit, below=below)

    def look(store: Store) -> int:
        read.clear()
        for vm in ("web", "db"):
            assert store.current(vm) is not None
            store.note_report(vm, report)
        return len(read)

    for module in ("sealed_files", "record_access"):
        monkeypatch.setattr(f"credferry.agent.store.{module}.read_untrusted", counted)
    other = Store(store.state, KEY)  # of another process
    assert look(other) == 4
    assert look(other) == 0
    store.write(manifest(2), {})
    assert look(other) == 1
    assert unbound(other.current("web")) == unbound(store.current("web")) == manifest(2)
    (store.vm_directory("web") / "current" / "manifest").write_bytes(b"rubbish")
    assert store.current("web") is other.current("web") is None


def test_what_was_written_is_not_opened(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that wrote a generation knows its manifest and its digest, as another one reads them."""
    store.write(manifest(1, "A"), {"A": Secret(b"1")})
    assert store.current("web") == Store(store.state, KEY).current("web")
    monkeypatch.setattr("credferry.agent.store.sealed_files.read_untrusted", None)
    assert unbound(store.current("web")) == manifest(1, "A")


def inodes(store: Store, number: int) -> dict[str, int]:
    """The inode of each file of a generation, by name."""
    generation = store.vm_directory("web") / "generations" / str(number)
    return {path.name: path.stat().st_ino for path in generation.iterdir()}


def test_an_unchanged_value_is_a_link_to_its_sealed_file(store: Store) -> None:
    """Only what differs is sealed and synced again, however many generations are removed meanwhile."""
    names = ("A", "B")
    for number in range(1, KEEP + 4):
        store.write(manifest(number, *names), {"A": Secret(b"same"), "B": Secret(b"%d" % number)})
        before, now = inodes(store, number - 1) if number > 1 else {}, inodes(store, number)
        same = {name for name, inode in now.items() if before.get(name) == inode}
        assert same == ({"value.A"} if number > 1 else set())
        assert Store(store.state, KEY).values("web") == {"A": Secret(b"same"), "B": Secret(b"%d" % number)}


@pytest.mark.parametrize(
    "how", ["damaged", "another's value", "a link", "removed", "of another key", "unlinkable"]
)
def test_a_file_that_may_be_wrong_is_not_used_again(
    store: Store, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What does not open to the value, or is no regular file there, is sealed again."""
    values = {"A": Secret(b"same"), "B": Secret(b"same too")}
    store.write(manifest(1, *values), values)
    file = store.vm_directory("web") / "generations" / "1" / "value.A"
    match how:
        case "damaged":
            file.write_bytes(file.read_bytes()[:-8])
        case "another's value":
            shutil.copy2(file.with_name("value.B"), file)
        case "a link":
            file.rename(store.state / "elsewhere")
            file.symlink_to(store.state / "elsewhere")
        case "removed":
            file.unlink()
        case "of another key":
            store = store.with_key(OTHER_KEY)
        case _:
            monkeypatch.setattr("os.link", refused)
    before = inodes(store, 1)
    store.write(manifest(2, *values), values)
    now = inodes(store, 2)
    assert before.get("value.A") != now["value.A"]
    assert (before["value.B"] == now["value.B"]) == (how not in {"of another key", "unlinkable"})
    assert Store(store.state, store.key).values("web") == values


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


def test_a_generation_can_be_sealed_anew(store: Store) -> None:
    """Its number, values and time stay, and nothing else is left. The manifest is replaced on demand."""
    store.write(manifest(1, "A"), {"A": Secret(CANARY)})
    place = store.vm_directory("web") / "generations/1"
    before, blobs = place.stat().st_mtime_ns, {each.name: each.read_bytes() for each in place.iterdir()}
    found = store.current("web")
    assert found is not None
    store.replace(found, {"A": Secret(CANARY)}, only_values=True)
    assert (place / "manifest").read_bytes() == blobs["manifest"]
    assert (place / "value.A").read_bytes() != blobs["value.A"]
    store.replace(found, {"A": Secret(CANARY)})
    assert (place / "manifest").read_bytes() != blobs["manifest"]
    assert place.stat().st_mtime_ns == before
    assert store.values("web") == {"A": Secret(CANARY)}
    assert not (store.vm_directory("web") / "renewed").exists()


def test_a_rollback_right_after_a_new_generation_became_current(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store knows that the older generation is current, and that no other one is."""
    for number in (1, 2):
        store.write(manifest(number, "A"), {"A": Secret(b"a")}, None)

    def pointed(link: Path, target: str) -> None:
        point(link, target)
        if target == "generations/3":
            store.revert("web", 1)

    monkeypatch.setattr(generations, "point", pointed)
    store.write(manifest(3, "A"), {"A": Secret(b"a")}, None)
    assert store.current_number("web") == 1
    assert unbound(store.current("web")) == manifest(1, "A")


def test_a_generation_that_became_current_while_another_was_opened(store: Store) -> None:
    """What was opened is not taken for the generation that was current before."""
    for number in (1, 2):
        store.write(manifest(number, "A"), {"A": Secret(b"a")}, None)
    known = Store(store.state, store.key).known
    known.current("web", partial(store.generation, "web", 1))
    assert unbound(known.current("web", partial(store.generation, "web", 2))) == manifest(2, "A")


def test_only_the_generation_that_does_not_open_is_given_up(store: Store) -> None:
    """Where a rollback has made another generation current meanwhile, that one still counts."""
    for number in (1, 2):
        store.write(manifest(number, "A"), {"A": Secret(b"a")}, None)
    store.revert("web", 1)
    store.give_up("web", 2)
    assert unbound(store.current("web")) == manifest(1, "A")
    store.give_up("web", 1)
    assert store.current("web") is None
