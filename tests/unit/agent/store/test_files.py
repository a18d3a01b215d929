# SPDX-License-Identifier: MIT
"""Durable writes: whole or not at all, for the owner alone, and nothing left beside them."""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import resource
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from credferry.agent.errors import StoreError, UnsyncedStoreError
from credferry.agent.store.files import (
    UnsyncedError,
    make_directory,
    point,
    replace_durably,
    store_error,
    sync_directory,
    write_all_durably,
)
from tests.support.descriptors import opened
from tests.support.generations import failing_sync

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def descriptors(count: int) -> Iterator[None]:
    """Allow this process so many more open files."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.open("/", os.O_RDONLY)
    os.close(lowest_free)
    # The listing itself has the lowest free number open. Some numbers above that are taken by other tests.
    taken = {int(each.name) for each in Path("/proc/self/fd").iterdir()} - {lowest_free}
    free = (number for number in itertools.count() if number not in taken)
    highest = next(itertools.islice(free, count - 1, None))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_directory_is_made_with_its_parents_for_the_owner_alone(tmp_path: Path) -> None:
    """All missing parents are made, and a directory that is there is no error and stays as it is."""
    for _ in range(2):
        make_directory(tmp_path / "a" / "b" / "c")
    made = [tmp_path / each for each in ("a", "a/b", "a/b/c")]
    assert [each.stat().st_mode & 0o777 for each in made] == [0o700] * 3
    made[0].chmod(0o755)
    make_directory(made[0])
    assert made[0].stat().st_mode & 0o777 == 0o755


def test_a_directory_is_synced_by_its_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each directory that is made survives a power failure: a sync of its parent that fails is an error."""
    failing_sync(monkeypatch, tmp_path)
    with pytest.raises(OSError, match="No space left"):
        make_directory(tmp_path / "a" / "b")
    with pytest.raises(OSError, match="No space left"):
        sync_directory(tmp_path)


def test_many_files_need_few_descriptors(tmp_path: Path) -> None:
    """A generation of any size is written with the descriptors that a process has by default."""
    contents = {f"f{number}": bytes([number]) * number for number in range(200)}
    with descriptors(66):
        write_all_durably(tmp_path, contents.items())
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == contents
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


def test_files_are_open_together_until_they_are_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to 64 files are written before the first is synced, each is synced once, and none stays open."""
    synced: list[int] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(len(list(tmp_path.iterdir())))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    before = opened()
    write_all_durably(tmp_path, ((f"f{number}", b"x") for number in range(70)))
    assert synced == [64] * 64 + [70] * 6 + [70]
    assert opened() <= before


def test_a_new_file_takes_no_other_file_s_place(tmp_path: Path) -> None:
    """A file that is there already is an error, and keeps its content."""
    (tmp_path / "f").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        write_all_durably(tmp_path, [("f", b"yours")])
    assert (tmp_path / "f").read_bytes() == b"mine"


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    """The new content takes the old one's place; what a crash has left beside it is used up."""
    (tmp_path / ".f.new").write_bytes(b"left by a crash")
    for content in (b"one", b"", b"x" * 100_000):
        replace_durably(tmp_path / "f", content)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"f": content}
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o600


def test_a_link_is_pointed_elsewhere(tmp_path: Path) -> None:
    """The link leads to the new target; what a crash has left beside it is used up."""
    (tmp_path / ".current.new").symlink_to("left by a crash")
    for target in ("one", "two"):
        point(tmp_path / "current", target)
        assert [path.name for path in tmp_path.iterdir()] == ["current"]
        assert str((tmp_path / "current").readlink()) == target


@pytest.mark.parametrize("change", [point, replace_durably])
def test_two_that_replace_the_same_wait_for_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path, Any], None]
) -> None:
    """Two threads share the path beside it, so the second begins when the first is done. Both succeed."""
    waits, ends = threading.Event(), list[str]()
    rename, flock = Path.rename, fcntl.flock

    def replaced(text: str) -> None:
        change(tmp_path / "it", text if change is point else text.encode())
        ends.append(text)

    other = threading.Thread(target=replaced, args=["second"])

    def renamed(path: Path, target: Path) -> Path:
        if threading.current_thread() is not other:
            other.start()
            assert waits.wait(20)
        return rename(path, target)

    def locked(descriptor: int, operation: int) -> None:
        if threading.current_thread() is other:
            with pytest.raises(BlockingIOError):
                flock(descriptor, operation | fcntl.LOCK_NB)
            waits.set()
        flock(descriptor, operation)

    monkeypatch.setattr(Path, "rename", renamed)
    monkeypatch.setattr(fcntl, "flock", locked)
    replaced("first")
    other.join()
    made = tmp_path / "it"
    assert sorted(ends) == ["first", "second"]
    assert (str(made.readlink()) if change is point else made.read_text()) == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["it"]


@pytest.mark.parametrize("change", [point, replace_durably])
def test_nothing_is_left_beside_what_could_not_be_replaced(tmp_path: Path, change) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001 (either function)
    """Where a directory is in the way, the error says so, and no half of the change stays."""
    (tmp_path / "here" / "in the way").mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        change(tmp_path / "here", "x" if change is point else b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_a_file_that_does_not_fit_leaves_the_one_before(tmp_path: Path) -> None:
    """A disk that is full while the new content is written costs neither the old content nor any room."""
    replace_durably(tmp_path / "f", b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            replace_durably(tmp_path / "f", b"much too long")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"f": b"old"}


def test_the_error_is_the_first_one(tmp_path: Path) -> None:
    """Where nothing could be made beside the path, the error says why, and not that nothing was made."""
    with pytest.raises(OSError, match="File name too long"):
        point(tmp_path / "current", "x" * 5_000)
    with descriptors(1), pytest.raises(OSError, match="Too many open files"):
        replace_durably(tmp_path / "f", b"x")
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_last_sync_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The change is in place then, and the error has the kernel's number and words."""
    failing_sync(monkeypatch, tmp_path)
    with pytest.raises(UnsyncedError) as file:
        replace_durably(tmp_path / "f", b"new")
    with pytest.raises(UnsyncedError) as link:
        point(tmp_path / "current", "new")
    for caught in (file, link):
        assert (caught.value.errno, caught.value.strerror) == (errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert (tmp_path / "f").read_bytes() == b"new"
    assert str((tmp_path / "current").readlink()) == "new"


def test_what_a_full_file_system_would_undo_is_told_apart_from_what_failed(tmp_path: Path) -> None:
    """Callers see by the error's class whether the change is in place. Both name the file and the cause."""
    failed = store_error(tmp_path / "f", OSError(errno.EROFS, "it is not writable"))
    unsynced = store_error(tmp_path / "f", UnsyncedError(errno.ENOSPC, "full"))
    assert (type(failed), str(failed)) == (StoreError, f"{tmp_path}/f: it is not writable")
    assert type(unsynced) is UnsyncedStoreError
    assert str(unsynced).startswith(f"{tmp_path}/f: written, but not safely on disk")
    assert str(unsynced).endswith(os.strerror(errno.ENOSPC))
    unnamed = store_error(tmp_path / "f", OSError(errno.EIO, None))
    assert str(unnamed) == f"{tmp_path}/f: {os.strerror(errno.EIO)}"
