# SPDX-License-Identifier: MIT
"""Hints from the kernel that the source may have changed. If one is lost, the resync finds the change.

A hint carries no data; it only triggers a check. inotify does not follow links, and a watch on a symlink
ends silently when the link is swapped. So this module watches each directory on the way to the source,
including the directories that links lead to, for the names that the way uses there. `Watch.arm` follows the
way again before each check. inotify has no event for a mount over the way; `MountTable` reports that. The
resync finds what neither of them sees, such as an overflow.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

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
from watchdog.observers.inotify import InotifyObserver

from credferry.agent.messages import Messages
from credferry.agent.source.mounts import MountTable
from credferry.agent.source.trail import Trail

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from watchdog.observers.api import BaseObserver, ObservedWatch

_log = Messages()

LOOK_SECONDS = 5.0
"""Seconds between two checks while not everything can be watched."""
DIRECTORIES_MAX = 256
"""Limit for watched directories. Each needs a watch and a thread."""
_TRIES = 5

# Without "opened" and "closed without writing": the agent's own reads would cause hints.
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
    """Calls ``hint`` for events on ``paths``; None means all. Raises nothing: that would end the thread."""

    def __init__(self, hint: Callable[[str], None]) -> None:
        self._hint = hint
        self.paths: frozenset[str] | None = None

    def on_any_event(self, event: FileSystemEvent) -> None:
        paths = {os.fsdecode(event.src_path), os.fsdecode(event.dest_path)}
        if self.paths is None or self.paths & paths:
            self._hint("inotify")


@dataclass(frozen=True, slots=True)
class _Place:
    """A directory to watch. Its identity shows whether another directory has taken its name."""

    identity: tuple[int, int]
    paths: frozenset[str] | None
    """The paths whose events count; None for all."""


@dataclass(frozen=True, slots=True)
class _Armed:
    """A directory that is watched."""

    watch: ObservedWatch
    handler: _Handler
    identity: tuple[int, int]


class Watch:
    """Watches a source. Calls ``hint`` in another thread; it must return at once and not raise."""

    def __init__(self, source: Path, hint: Callable[[str], None]) -> None:
        self._source = os.path.abspath(source)  # noqa: PTH100 (watchdog's paths are strings)
        self._hint = hint
        self._observer: BaseObserver | None = None
        self._mounts = MountTable(hint)
        self._armed: dict[str, _Armed] = {}
        self._lack: str | None = None

    @property
    def is_whole(self) -> bool:
        """Whether everything is watched. If not, the caller checks at least every `LOOK_SECONDS`."""
        return self._lack is None

    def start(self) -> None:
        """Begin to watch. If inotify is unavailable, this is logged, and `arm` tries again."""
        self._mounts.start()
        self._start()

    def _start(self) -> None:
        try:
            observer = InotifyObserver()  # watchdog 7 opens the inotify descriptor here
            observer.start()
        except OSError as error:
            self._tell(os.strerror(error.errno or 0))
        else:
            self._observer = observer

    def arm(self, names: Iterable[str]) -> bool:
        """Watch the present way to the source, and the ways from there to the named secrets.

        Returns whether a directory is newly watched: what was read before may have changed since, without a
        hint. If nothing has moved, this adds no watches. If something cannot be watched, this is logged
        once, and again when everything is watched.
        """
        if self._observer is None or not self._observer.is_alive():
            self._replace()
        if self._observer is None:
            return False
        names, has_new = list(names), False
        # A change between following the way and watching it causes no event. So follow the way again.
        for _ in range(_TRIES):
            wanted = self._places(names)
            lack, is_new = self._arm(self._observer, wanted)
            has_new = has_new or is_new
            if not is_new:
                break
        self._mounts.paths = frozenset(wanted)
        self._tell(lack)
        return has_new

    def _arm(self, observer: BaseObserver, wanted: dict[str, _Place]) -> tuple[str | None, bool]:
        """Watch exactly these directories. Returns what prevents that, and whether a watch is new."""
        # The observer outlives its emitters. Only an emitter shows whether its directory is still watched.
        dead = {emitter.watch for emitter in observer.emitters if not emitter.is_alive()}
        for path, armed in list(self._armed.items()):
            if armed.watch in dead or path not in wanted or armed.identity != wanted[path].identity:
                del self._armed[path]
                observer.unschedule(armed.watch)
        lack, is_new = None, False
        if len(wanted) > DIRECTORIES_MAX:
            lack = f"the secrets are in more than {DIRECTORIES_MAX} directories"
        for path, place in list(wanted.items())[:DIRECTORIES_MAX]:
            if path in self._armed:
                self._armed[path].handler.paths = place.paths
                continue
            handler = _Handler(self._hint)
            handler.paths = place.paths
            try:
                _assert_watchable(path)
                watch = observer.schedule(handler, path, event_filter=_EVENTS)
            except OSError as error:
                # A directory that has just been removed is no problem: `arm` follows the way again.
                if error.errno not in {errno.ENOENT, errno.ENOTDIR}:
                    lack = os.strerror(error.errno or 0)
            else:
                self._armed[path] = _Armed(watch, handler, place.identity)
                is_new = True
        return lack, is_new

    def _tell(self, lack: str | None) -> None:
        if lack is not None and self._lack is None:
            _log.warning(
                "cannot watch all of the source; until it can, the agent checks the source more often",
                reason=lack,
                seconds=LOOK_SECONDS,
                hint="raise fs.inotify.max_user_watches and fs.inotify.max_user_instances",
            )
        elif lack is None and self._lack is not None:
            _log.info("the whole source is watched again")
        self._lack = lack

    def stop(self) -> None:
        """Stop watching, and wait for the threads to end."""
        self._mounts.stop()
        self._stop()

    def _stop(self) -> None:
        if self._observer is not None and self._observer.is_alive():
            self._observer.stop()
            self._observer.join(timeout=5)
        self._observer = None
        self._armed.clear()

    def _places(self, names: Iterable[str]) -> dict[str, _Place]:
        """The directories to watch, by path. Those on the way to the source come first."""
        trail = Trail()
        target = trail.follow(self._source, to_directory=True)
        if target is not None:
            trail.names.setdefault(target, set())
            for name in names:
                trail.follow(name, target)
        found = {}
        for path, inside in trail.names.items():
            try:
                status = os.stat(path)  # noqa: PTH116 (watchdog's paths are strings)
            except OSError:
                continue
            # The event of a directory's removal has the directory's own path.
            paths = frozenset({path, *(os.path.join(path, name) for name in inside)})  # noqa: PTH118 (watchdog's paths are strings)
            found[path] = _Place((status.st_dev, status.st_ino), None if path == target else paths)
        return found

    def _replace(self) -> None:
        if self._observer is not None:
            _log.warning("the watching thread has ended; starting it again")
        self._stop()
        self._start()


def _assert_watchable(path: str) -> None:
    """Raise `OSError` where watchdog raises none: it would start, and never report an event."""
    if os.access(path, os.R_OK | os.X_OK):
        return
    os.stat(path)  # noqa: PTH116 (watchdog's paths are strings)
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
