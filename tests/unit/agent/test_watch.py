# SPDX-License-Identifier: MIT
"""The real watch on real directories: each change on the way to a source gives a hint, time after time."""

from __future__ import annotations

import errno
import os
import queue
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import structlog.testing
from watchdog.observers.inotify import InotifyObserver

from credferry.agent.source import watch
from credferry.agent.source.watch import Watch
from tests.support.descriptors import opened

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

_SECONDS = 30.0
"""Until a hint must be there. Nothing is measured by it: without it a test would wait for ever."""


class Watched:
    """A watch, and the hints that it gives."""

    def __init__(self, source: Path, *names: str) -> None:
        self._hints: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._names = names
        self.watch = Watch(source, self._hints.put)

    def look(self) -> None:
        """Arm the watch as before each look of the agent, and forget what hints there were."""
        self.watch.arm(self._names)
        while not self._hints.empty():
            self._hints.get_nowait()

    def assert_noticed(self) -> None:
        """A hint comes, and the agent looks."""
        self._hints.get(timeout=_SECONDS)
        self.look()

    @property
    def directories(self) -> set[str]:
        """What is watched."""
        return set(self.watch._armed)


@contextmanager
def watching(source: Path, *names: str) -> Iterator[Watched]:
    """A watch on a source, armed once."""
    watched = Watched(source, *names)
    watched.watch.start()
    try:
        watched.look()
        yield watched
    finally:
        watched.watch.stop()


def publish(top: Path, number: int, keep: int, name: str = "vars/app/key") -> None:
    """Publish a generation as sops-nix does: the link is made aside, and renamed into place."""
    directory = top / "secrets.d" / str(number)
    (directory / name).parent.mkdir(parents=True)
    (directory / name).write_text(str(number))
    aside = top / f".secrets{number}"
    aside.mkdir()
    (aside / "tmp.symlink").symlink_to(directory)
    (aside / "tmp.symlink").rename(top / "secrets")
    aside.rmdir()
    for old in (top / "secrets.d").iterdir():
        if keep and int(old.name) <= number - keep:
            shutil.rmtree(old)


@pytest.mark.parametrize("keep", [0, 1, 2])
def test_a_swap_above_the_source_is_noticed_each_time(tmp_path: Path, keep: int) -> None:
    """The source is below the link that is swapped, as clan's ``/run/secrets/vars`` is."""
    publish(tmp_path, 1, keep)
    with watching(tmp_path / "secrets/vars", "app/key") as watched:
        for number in range(2, 6):
            publish(tmp_path, number, keep)
            watched.assert_noticed()
            assert str(tmp_path / f"secrets.d/{number}/vars/app") in watched.directories


@pytest.mark.parametrize("keep", [0, 1, 2])
def test_a_swap_where_links_lead_out_is_noticed_each_time(tmp_path: Path, keep: int) -> None:
    """The source stays as it is: the link in it leads through another that is swapped."""
    publish(tmp_path, 1, keep, "rendered/e")
    (tmp_path / "x").mkdir()
    (tmp_path / "x/env").symlink_to(tmp_path / "secrets/rendered/e")
    with watching(tmp_path / "x", "env") as watched:
        for number in range(2, 6):
            publish(tmp_path, number, keep, "rendered/e")
            watched.assert_noticed()


def test_links_that_lead_to_links_are_watched_to_the_end(tmp_path: Path) -> None:
    """Each link of a chain may be swapped, and a write to the file at its end is noticed."""
    for name in ("a", "b", "end"):
        (tmp_path / name).mkdir()
    (tmp_path / "end/key").write_text("1")
    (tmp_path / "b/link").symlink_to("../end/key")
    (tmp_path / "a/link").symlink_to(tmp_path / "b/link")
    (tmp_path / "x").mkdir()
    (tmp_path / "x/k").symlink_to("../a/link")
    with watching(tmp_path / "x", "k") as watched:
        for place, target in (("b/link", "../end/key"), ("a/link", "../b/link"), ("x/k", "../a/link")):
            (tmp_path / "new").symlink_to(target)
            (tmp_path / "new").rename(tmp_path / place)
            watched.assert_noticed()
        (tmp_path / "end/key").write_text("2")
        watched.assert_noticed()


def test_a_component_that_does_not_exist_yet_is_noticed_when_it_comes(tmp_path: Path) -> None:
    """Directory after directory of the way is made, then a link whose target is made last."""
    with watching(tmp_path / "one/two/secrets", "key") as watched:
        for part in ("one", "one/two"):
            (tmp_path / part).mkdir()
            watched.assert_noticed()
        (tmp_path / "one/two/secrets").symlink_to(tmp_path / "elsewhere")
        watched.assert_noticed()
        (tmp_path / "elsewhere").mkdir()
        watched.assert_noticed()
        (tmp_path / "elsewhere/key").write_text("1")
        watched.assert_noticed()


@pytest.mark.parametrize("how", ["removed", "renamed"])
def test_a_component_that_is_made_anew_is_noticed_each_time(tmp_path: Path, how: str) -> None:
    """A directory of the way goes, and another comes in its place; what is written there is noticed."""
    (tmp_path / "a/secrets").mkdir(parents=True)
    with watching(tmp_path / "a/secrets", "key") as watched:
        for number in range(3):
            if how == "removed":
                shutil.rmtree(tmp_path / "a")
            else:
                (tmp_path / "a").rename(tmp_path / f"old{number}")
            watched.assert_noticed()
            (tmp_path / "a/secrets").mkdir(parents=True)
            watched.look()
            (tmp_path / "a/secrets/key").write_text(str(number))
            watched.assert_noticed()


def test_a_circle_of_links_ends(tmp_path: Path) -> None:
    """Links in a circle lead nowhere; once the circle is broken, that is noticed."""
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with watching(tmp_path / "a/secrets", "key") as watched:
        (tmp_path / "secrets").mkdir()
        (tmp_path / "b").unlink()
        watched.assert_noticed()


def test_what_is_watched_does_not_grow(tmp_path: Path) -> None:
    """After many swaps there are as many watches and descriptors as after the first."""
    publish(tmp_path, 1, 0)
    with watching(tmp_path / "secrets/vars", "app/key") as watched:
        before, descriptors = len(watched.directories), opened()
        for number in range(2, 30):
            publish(tmp_path, number, 0)
            watched.assert_noticed()
        assert len(watched.directories) == before
        assert opened() <= descriptors


def test_more_directories_than_may_be_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Watches are bounded: the way to the source comes first, and the lack is told once."""
    names = [f"{number}/key" for number in range(20)]
    for name in names:
        (tmp_path / "s" / name).parent.mkdir(parents=True)
    monkeypatch.setattr(watch, "DIRECTORIES_MAX", len(tmp_path.parts) + 5)
    with structlog.testing.capture_logs() as logs, watching(tmp_path / "s", *names) as watched:
        watched.look()
        assert not watched.watch.is_whole
        assert str(tmp_path / "s") in watched.directories
        assert len(watched.directories) == len(tmp_path.parts) + 5
        assert [log["log_level"] for log in logs] == ["warning"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EMFILE])
def test_without_inotify_the_agent_looks_more_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The kernel's refusals are modelled: a real limit would be that of all tests. They are told once."""
    (tmp_path / "s").mkdir()

    def refuse(*_arguments: object, **_options: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch, structlog.testing.capture_logs() as logs:
        if number == errno.ENOSPC:
            patch.setattr(InotifyObserver, "schedule", refuse)
        else:
            patch.setattr("credferry.agent.source.watch.InotifyObserver", refuse)
        with watching(tmp_path / "s", "key") as watched:
            watched.look()
            assert not watched.watch.is_whole
            assert [log["log_level"] for log in logs] == ["warning"]
            patch.undo()
            watched.look()
            assert watched.watch.is_whole
            assert [log["log_level"] for log in logs] == ["warning", "info"]
            (tmp_path / "s/key").write_text("1")
            watched.assert_noticed()


def test_a_directory_that_goes_meanwhile_is_no_lack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Swaps between following the way and watching it remove what was found: that is no reason to warn."""
    publish(tmp_path, 1, 0)
    numbers = iter(range(2, 100))
    follow = Watch._places

    def follow_and_swap(self: Watch, names: Iterable[str]) -> dict[str, watch._Place]:
        found = follow(self, names)
        publish(tmp_path, next(numbers), 1)
        return found

    with structlog.testing.capture_logs() as logs, monkeypatch.context() as patch:
        patch.setattr(Watch, "_places", follow_and_swap)
        with watching(tmp_path / "secrets", "vars/app/key") as watched:
            assert watched.watch.is_whole
            patch.undo()
            watched.look()
            assert str((tmp_path / "secrets").resolve() / "vars/app") in watched.directories
    assert logs == []


def test_a_directory_that_goes_while_it_is_asked_about_is_no_lack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way is asked about step by step: what is removed in between was not forbidden."""
    publish(tmp_path, 1, 0)
    numbers = iter(range(2, 100))
    access = os.access

    def swap_and_access(path: str, mode: int) -> bool:
        if "secrets.d/" in path:
            publish(tmp_path, next(numbers), 1)
        return access(path, mode)

    with structlog.testing.capture_logs() as logs, monkeypatch.context() as patch:
        patch.setattr(os, "access", swap_and_access)
        with watching(tmp_path / "secrets", "vars/app/key") as watched:
            assert watched.watch.is_whole
    assert logs == []
