# SPDX-License-Identifier: MIT
"""The watches of all sources that a VM uses. Each is armed by itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from credferry.agent.config.model import Config
    from credferry.agent.source.watch import Watch


class Watches:
    """One `Watch` for each source in use, made by ``make``. See `Watch` for ``hint``."""

    def __init__(
        self,
        config: Config,
        make: Callable[[Path, Callable[[str], None]], Watch],
        hint: Callable[[str], None],
    ) -> None:
        self.places = ", ".join(config.source_of(name).path for name in config.secrets) or "no source"
        """The paths of the sources, for a message."""
        self._watches: list[tuple[Watch, list[str]]] = []
        for source, names in config.secrets.items():
            of = config.source_of(source)
            # A secret without a slash in its name is in the source directory itself, or a link is followed.
            watched = sorted(name for name in names if of.follow_links or "/" in name)
            self._watches.append((make(Path(of.path), hint), watched))

    @property
    def is_whole(self) -> bool:
        """Whether everything is watched."""
        return all(watch.is_whole for watch, _ in self._watches)

    def start(self) -> None:
        """Begin to watch."""
        for watch, _ in self._watches:
            watch.start()

    def arm(self) -> bool:
        """Watch the present way to each source and to its secrets; whether a directory is newly watched.

        What was read before a new watch may have changed since, without a hint: read it again.
        """
        are_new = [watch.arm(names) for watch, names in self._watches]
        return any(are_new)

    def stop(self) -> None:
        """Stop watching, and wait for the threads to end."""
        for watch, _ in self._watches:
            watch.stop()
