# SPDX-License-Identifier: MIT
"""Snapshots of a source: consistent, bounded, and never out of it."""

from __future__ import annotations

import os
import resource
import socket
import tempfile
import threading
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from credferry.agent.errors import SourceError
from credferry.agent.sealing.credential import PLAINTEXT_MAX
from credferry.agent.source import reading
from credferry.agent.source import snapshot as source
from credferry.agent.source.reading import Problem
from credferry.agent.source.snapshot import take
from credferry.launcher.handoff import Secret

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def generation(tmp_path: Path) -> Path:
    """A published generation with one secret, behind a symlink `secrets`."""
    directory = tmp_path / "secrets.d" / "1"
    (directory / "db").mkdir(parents=True)
    (directory / "api-key").write_bytes(b"value")
    (directory / "db" / "password").write_bytes(b"nested")
    (tmp_path / "secrets").symlink_to(directory)
    return directory


def test_reads_plain_and_nested_names(tmp_path: Path, generation: Path) -> None:
    """Names are paths within the source; a symlinked source is a committed generation."""
    snapshot = take(tmp_path / "secrets", ["api-key", "db/password"])
    assert snapshot.values == {"api-key": Secret(b"value"), "db/password": Secret(b"nested")}
    assert snapshot.generation.committed
    assert not take(generation, []).generation.committed


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (str, Problem.ABSENT),
        (lambda path: path.write_bytes(b""), Problem.EMPTY),
        (lambda path: path.write_bytes(b"x" * (PLAINTEXT_MAX + 1)), Problem.TOO_LARGE),
        (lambda path: path.mkdir(), Problem.NOT_A_FILE),
        (os.mkfifo, Problem.NOT_A_FILE),
        (lambda path: path.symlink_to("/etc/passwd"), Problem.ESCAPES),
        (lambda path: path.symlink_to("../../outside"), Problem.ESCAPES),
        (lambda path: path.symlink_to("db/../../../outside"), Problem.ESCAPES),
        (lambda path: path.symlink_to("x"), Problem.ESCAPES),
        (lambda path: path.symlink_to("missing"), Problem.ABSENT),
        (lambda path: path.symlink_to("api-key/below"), Problem.ABSENT),
        (lambda path: path.symlink_to("."), Problem.NOT_A_FILE),
        (lambda path: path.symlink_to("/dev/zero"), Problem.ESCAPES),
        (lambda path: path.symlink_to("db/./password"), Secret(b"nested")),
        (lambda path: path.symlink_to("db/../api-key"), Secret(b"value")),
        (lambda path: path.write_bytes(b"x" * PLAINTEXT_MAX), Secret(b"x" * PLAINTEXT_MAX)),
    ],
    ids=[
        "absent", "empty", "too large", "directory", "FIFO", "absolute link", "link up", "detour up",
        "loop", "dangling", "below a file", "to itself", "device", "nested link", "there and back", "1 MiB",
    ],
)  # fmt: skip
def test_one_bad_name_is_a_problem(
    tmp_path: Path, generation: Path, make: Callable[[Path], object], expected: Secret | Problem
) -> None:
    """What a name leads to is a value or a problem of its own; the others are read all the same."""
    (tmp_path / "outside").write_bytes(b"not yours")
    make(generation / "x")
    snapshot = take(tmp_path / "secrets", ["x", "api-key"])
    assert snapshot.values == {"x": expected, "api-key": Secret(b"value")}


def test_links_out_may_be_allowed(tmp_path: Path, generation: Path) -> None:
    """Only where the configuration says so does a link lead out of the source."""
    (tmp_path / "outside").write_bytes(b"elsewhere")
    (generation / "x").symlink_to(tmp_path / "outside")
    assert take(tmp_path / "secrets", ["x"], follow_links=True).values == {"x": Secret(b"elsewhere")}


def test_devices_are_refused_where_links_are_followed(tmp_path: Path, generation: Path) -> None:
    """An endless device behind an allowed link is neither read nor waited for."""
    (generation / "x").symlink_to("/dev/zero")
    assert take(tmp_path / "secrets", ["x"], follow_links=True).values == {"x": Problem.NOT_A_FILE}


def test_what_cannot_be_read_is_a_problem(tmp_path: Path, generation: Path) -> None:
    """A file whose reading fails has no value; this one fails for everybody."""
    (generation / "x").symlink_to("/proc/self/mem")
    assert take(tmp_path / "secrets", ["x"], follow_links=True).values == {"x": Problem.UNREADABLE}


def test_a_socket_is_no_secret(generation: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket under a secret's name is neither connected to nor waited for."""
    monkeypatch.chdir(generation)  # a socket's path may not be long
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("x")
        assert take(generation, ["x"]).values == {"x": Problem.NOT_A_FILE}


def test_a_link_opens_few_files_at_a_time(tmp_path: Path, generation: Path) -> None:
    """A user who writes the source could else use up the files that the agent may have open, for all VMs."""
    (generation / "x").symlink_to("db/../" * 600 + "api-key")
    here = generation
    for _ in range(100):
        here /= "d"
    here.mkdir(parents=True)
    (here / "v").write_bytes(b"deep")
    (generation / "y").symlink_to("d/" * 100 + "v")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 (only their number)
    resource.setrlimit(resource.RLIMIT_NOFILE, (opened + 90, hard))
    try:
        values = take(tmp_path / "secrets", ["x", "y", "api-key"]).values
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert values == {"x": Secret(b"value"), "y": Problem.UNREADABLE, "api-key": Secret(b"value")}
    assert take(tmp_path / "secrets", ["y"]).values == {"y": Problem.UNREADABLE}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to other users")
def test_a_link_of_another_user_leads_nowhere(tmp_path: Path, generation: Path) -> None:
    """A producer that replaces its directory by a link gets nothing read that is another user's."""
    foreign, own = 12345, 23456
    os.chown(generation, own, own)
    assert take(tmp_path / "secrets", ["api-key"]).values == {"api-key": Secret(b"value")}
    os.lchown(tmp_path / "secrets", own, own)
    assert take(tmp_path / "secrets", ["api-key"]).values == {"api-key": Secret(b"value")}
    os.lchown(tmp_path / "secrets", foreign, foreign)
    (tmp_path / "above").symlink_to("secrets/.")
    for path in (tmp_path / "secrets", tmp_path / "above", tmp_path / "secrets" / "db"):
        with pytest.raises(
            SourceError, match="'secrets' is a link of user 12345, who does not own"
        ) as caught:
            take(path, ["api-key"])
        assert "chown -h root" in caught.value.hint
    odd = tmp_path / os.fsdecode(b"\xff\n")
    odd.symlink_to(generation)
    os.lchown(odd, foreign, foreign)
    (tmp_path / "above").unlink()
    (tmp_path / "above").symlink_to(odd)
    with pytest.raises(
        SourceError, match=r"'\\udcff\\n' is a link of user"
    ):  # and can be written to a journal
        take(tmp_path / "above", ["api-key"])


def test_links_on_the_way_have_an_end(tmp_path: Path) -> None:
    """Links in a circle, and a file in the place of a directory, are errors with a remedy."""
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    (tmp_path / "c").write_bytes(b"")
    for name, said in (("a", "Too many levels of symbolic links"), ("c", "Not a directory")):
        with pytest.raises(SourceError, match=said):
            take(tmp_path / name, ["x"])


def test_memory_is_bounded_by_what_is_asked_for() -> None:
    """Neither 100,000 names that nobody asked for, whatever they are, nor a file of 10 GiB, take memory."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        source = Path(name)
        for number in range(100_000):
            os.mknod(source / f"{number}")
        (source / "wanted").write_bytes(b"among many")
        (source / os.fsdecode(b"not UTF-8: \xff\xfe")).write_bytes(b"junk")
        (source / "loop").symlink_to("loop")
        with (source / "huge").open("wb") as file:
            file.truncate(10 << 30)
        tracemalloc.start()
        try:
            assert take(source, ["wanted"]).values == {"wanted": Secret(b"among many")}
            assert tracemalloc.get_traced_memory()[1] < 2 * PLAINTEXT_MAX  # the names alone have 6 MiB
            assert take(source, ["huge"]).values == {"huge": Problem.TOO_LARGE}
            assert tracemalloc.get_traced_memory()[1] < 4 * PLAINTEXT_MAX
        finally:
            tracemalloc.stop()


def test_a_file_that_grows_is_not_believed(tmp_path: Path, generation: Path) -> None:
    """What grows while it is read is being written, and is too large once it is: never half a value."""
    seen: set[Problem] = set()
    stop = threading.Event()

    def write() -> None:
        with (generation / "x").open("ab", buffering=0) as file:
            while not stop.is_set():
                if Problem.BEING_WRITTEN in seen:
                    file.write(b"x" * (1 << 16))
                elif file.write(b"x") and file.tell() > 1 << 16:
                    file.truncate(0)  # else it is too large for good before a slow reader has seen it grow

    writer = threading.Thread(target=write)
    writer.start()
    try:
        while not {Problem.BEING_WRITTEN, Problem.TOO_LARGE} <= seen:
            with suppress(SourceError):
                seen |= {
                    value
                    for value in take(tmp_path / "secrets", ["x"]).values.values()
                    if isinstance(value, Problem)
                }
    finally:
        stop.set()
        writer.join()
    assert seen <= {Problem.BEING_WRITTEN, Problem.TOO_LARGE, Problem.ABSENT, Problem.EMPTY}


def test_missing_source(tmp_path: Path) -> None:
    """No source is one error with a remedy."""
    with pytest.raises(SourceError, match="No such file") as caught:
        take(tmp_path / "secrets", ["x"])
    assert "producer" in caught.value.hint


def test_never_mixes_generations(tmp_path: Path) -> None:
    """While generations are swapped and pruned as fast as can be, every snapshot is of one of them."""
    link = tmp_path / "secrets"
    stop = threading.Event()

    def publish(number: int) -> None:
        directory = tmp_path / str(number)
        directory.mkdir()
        for name in ("a", "b", "c"):
            (directory / name).write_text(str(number))
        (tmp_path / "new").symlink_to(directory)
        (tmp_path / "new").rename(link)

    def publish_all() -> None:
        number = 1
        while not stop.is_set():
            number += 1
            publish(number)
            for path in (tmp_path / str(number - 1)).iterdir():
                path.unlink()
            (tmp_path / str(number - 1)).rmdir()

    publish(1)
    producer = threading.Thread(target=publish_all)
    producer.start()
    seen: set[bytes] = set()
    try:
        while len(seen) < 200:
            try:
                values = take(link, ["a", "b", "c"]).values
            except SourceError as error:
                assert "while it was being read" in str(error)  # noqa: PT017 (raised only under this load)
                continue
            revealed = {value.reveal() for value in values.values() if isinstance(value, Secret)}
            assert len(values) == 3
            assert len(revealed) == 1, values
            seen |= revealed
    finally:
        stop.set()
        producer.join()


def swap(top: Path, number: int) -> None:
    """Publish a generation with ``vars/key`` and ``vars/other`` by the swap of a link."""
    (top / f"secrets.d/{number}/vars").mkdir(parents=True)
    for name in ("key", "other"):
        (top / f"secrets.d/{number}/vars/{name}").write_text(str(number))
    (top / "new").symlink_to(top / f"secrets.d/{number}")
    (top / "new").rename(top / "secrets")


def test_a_swap_above_the_source_is_one(tmp_path: Path) -> None:
    """The link may be any on the way; to see the same again, or a directory made anew, is no swap."""
    swap(tmp_path, 1)
    first = take(tmp_path / "secrets/vars", ["key"]).generation
    assert not first.is_swap_of(take(tmp_path / "secrets/vars", ["key"]).generation)
    (tmp_path / "secrets.d/1/vars").rename(tmp_path / "gone")
    (tmp_path / "secrets.d/1/vars").mkdir()
    anew = take(tmp_path / "secrets/vars", ["key"]).generation
    assert anew != first
    assert not anew.is_swap_of(first)
    swap(tmp_path, 2)
    assert take(tmp_path / "secrets/vars", ["key"]).generation.is_swap_of(anew)


def test_only_a_directory_s_link_commits_what_links_lead_to(tmp_path: Path) -> None:
    """A directory's link moves all files below it at once. Links to single files are replaced one by one."""
    swap(tmp_path, 1)
    (tmp_path / "x").mkdir()
    (tmp_path / "x/key").symlink_to(tmp_path / "secrets/vars/key")
    first = take(tmp_path / "x", ["key"], follow_links=True).generation
    swap(tmp_path, 2)
    second = take(tmp_path / "x", ["key"], follow_links=True).generation
    assert second.is_swap_of(first)
    (tmp_path / "x/new").symlink_to(tmp_path / "secrets/vars/other")
    (tmp_path / "x/new").rename(tmp_path / "x/key")
    assert not take(tmp_path / "x", ["key"], follow_links=True).generation.is_swap_of(second)


def test_never_mixes_what_links_lead_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A swap between the reading of two names that lead through its link: both are read again."""
    swap(tmp_path, 1)
    (tmp_path / "x").mkdir()
    for name in ("key", "other"):
        (tmp_path / f"x/{name}").symlink_to(tmp_path / f"secrets/vars/{name}")
    real, numbers = reading.read_secret, iter((2,))

    def read(*arguments: Any, **named: Any) -> Secret | Problem:  # noqa: ANN401 (as it is called)
        value = real(*arguments, **named)
        for number in numbers:
            swap(tmp_path, number)
        return value

    monkeypatch.setattr(source, "read_secret", read)
    values = take(tmp_path / "x", ["key", "other"], follow_links=True).values
    assert values == {"key": Secret(b"2"), "other": Secret(b"2")}
