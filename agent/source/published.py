# SPDX-License-Identifier: MIT
"""What all sources hold at one moment. A source that cannot be read concerns only those that use it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from credferry.agent.errors import SourceError
from credferry.agent.source.snapshot import Snapshot, take

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from credferry.agent.config.model import Config


@dataclass(frozen=True, slots=True)
class Published:
    """By a source's name (empty for the default one): its snapshot, or why it has none."""

    sources: Mapping[str, Snapshot | SourceError]

    @property
    def snapshots(self) -> dict[str, Snapshot]:
        """The sources that could be read."""
        return {name: each for name, each in self.sources.items() if isinstance(each, Snapshot)}

    @property
    def errors(self) -> dict[str, SourceError]:
        """The sources that could not be read."""
        return {name: each for name, each in self.sources.items() if isinstance(each, SourceError)}

    @property
    def failure(self) -> SourceError | None:
        """The first error, if no source could be read at all; else None."""
        return next(iter(self.errors.values()), None) if not self.snapshots else None


NOTHING = Published({})
"""What VMs see that use no source."""


def read(config: Config, wanted: Mapping[str, Iterable[str]]) -> Published:
    """Read the named secrets of each source. Raises nothing: a source that cannot be read has its error."""
    return Published({source: _read(config, source, names) for source, names in sorted(wanted.items())})


def _read(config: Config, source: str, names: Iterable[str]) -> Snapshot | SourceError:
    of = config.source_of(source)
    try:
        return take(Path(of.path), names, follow_links=of.follow_links, name=source)
    except SourceError as error:
        return error
