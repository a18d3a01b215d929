# SPDX-License-Identifier: MIT
"""Hints from inotify that it is worth looking; never data, and nothing depends on one arriving.

A watch on the symlink itself dies silently at its first swap. So its parent is watched, non-recursively,
filtered by the symlink's name, and the directory that it leads to is watched anew after each swap, for
writes in place. What inotify cannot see (a mount over the source, an overflow) the resync finds.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import structlog
from watchdog.events import (
    DirCreatedEvent,
    DirDeletedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from watchdog.observers.api import BaseObserver, ObservedWatch

_log = structlog.get_logger()

# Not opened and not closed-without-writing: our own reading would come back as hints.
_EVENTS: list[type[FileSystemEvent]] = [
    FileCreatedEvent,
    FileMovedEvent,
    FileDeletedEvent,
    FileClosedEvent,
    DirCreatedEvent,
    DirDeletedEvent,
    DirMovedEvent,
]


class _Handler(FileSystemEventHandler):
    """Calls back, for one name or any. An exception here would end the observer's thread: there is none."""

    def __init__(self, hint: Callable[[str], None], path: str | None) -> None:
        self._hint = hint
        self._path = path

    def on_any_event(self, event: FileSystemEvent) -> None:
        paths = {os.fsdecode(event.src_path), os.fsdecode(event.dest_path)}
        if self._path is None or self._path in paths:
            self._hint("inotify")


class Watch:
    """Watches a source. ``hint`` is called in another thread; it must return at once and not raise."""

    def __init__(self, source: Path, hint: Callable[[str], None]) -> None:
        self._source = source
        self._hint = hint
        self._observer: BaseObserver = Observer()
        self._armed: dict[str, ObservedWatch] = {}
        self._identity: dict[str, tuple[int, int]] = {}
        self._lacks_watches = False

    def start(self) -> None:
        """Begin to watch. Where inotify cannot be had at all, the resync has to do, which is reported."""
        try:
            self._observer.start()
        except OSError as error:
            _log.warning("nothing is watched, all is left to the resync", error=error.strerror)

    def arm(self, names: Iterable[str]) -> None:
        """Watch what the source is now: its parent, and the directories that hold the named secrets.

        To be called after each look: it costs nothing where nothing moved. A directory that cannot be
        watched is left to the resync, which is reported once, until all can be.
        """
        if not self._observer.is_alive():
            self._replace()
        # The observer outlives its emitters: only they tell whether anything is still being watched.
        dead = {emitter.watch for emitter in self._observer.emitters if not emitter.is_alive()}
        wanted = self._directories(names)
        for path, watch in list(self._armed.items()):
            if watch in dead or self._identity[path] != wanted.get(path):
                del self._armed[path], self._identity[path]
                self._observer.unschedule(watch)
        parent = os.path.realpath(self._source.parent)
        error = None
        for path, identity in wanted.items():
            if path in self._armed:
                continue
            name = os.path.join(parent, self._source.name) if path == parent else None  # noqa: PTH118 (watchdog's paths are strings)
            try:
                handler = _Handler(self._hint, name)
                self._armed[path] = self._observer.schedule(handler, path, event_filter=_EVENTS)
                self._identity[path] = identity
            except OSError as caught:
                # One that has gone meanwhile is not lacked: its parent's event, or the resync, tells.
                error = error if caught.errno in {errno.ENOENT, errno.ENOTDIR} else caught
        self._tell(error)

    def _tell(self, error: OSError | None) -> None:
        if error is not None and not self._lacks_watches:
            _log.warning(
                "not all can be watched; changes are found by the resync",
                error=error.strerror,
                hint="raise fs.inotify.max_user_watches and fs.inotify.max_user_instances",
            )
        elif error is None and self._lacks_watches:
            _log.info("all is watched again")
        self._lacks_watches = error is not None

    def stop(self) -> None:
        """Stop watching, and wait for the threads to end."""
        if self._observer.is_alive():
            self._observer.stop()
            self._observer.join(timeout=5)

    def _directories(self, names: Iterable[str]) -> dict[str, tuple[int, int]]:
        """Directories to watch, each with its identity: a new one in an old one's place is another."""
        target = os.path.realpath(self._source)
        paths = {os.path.realpath(self._source.parent), target}
        paths |= {os.path.dirname(os.path.join(target, name)) for name in names if "/" in name}  # noqa: PTH118, PTH120 (watchdog's paths are strings)
        found = {}
        for path in paths:
            try:
                status = os.stat(path)  # noqa: PTH116 (watchdog's paths are strings)
            except OSError:
                continue
            if os.access(path, os.R_OK | os.X_OK):  # else watchdog starts and never tells of anything
                found[path] = (status.st_dev, status.st_ino)
        return found

    def _replace(self) -> None:
        _log.warning("the observer ended; watching anew")
        self.stop()
        self._observer = Observer()
        self._armed.clear()
        self._identity.clear()
        self.start()
