# SPDX-License-Identifier: MIT
"""What all sources hold at one moment. A source that cannot be read concerns only those that use it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from credferry.agent.errors import SourceError
from credferry.agent.source.fields import ParsedFile, parse
from credferry.agent.source.reading import Problem
from credferry.agent.source.snapshot import Snapshot, take
from credferry.launcher.handoff import Secret

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from credferry.agent.config.model import Config
    from credferry.agent.config.secrets import CredentialConfig, Format


@dataclass(frozen=True, slots=True)
class Publication:
    """By a source's name (empty for the default one): its snapshot, or why it has none."""

    sources: Mapping[str, Snapshot | SourceError]
    _documents: dict[tuple[str, str, Format], ParsedFile | Problem] = field(
        default_factory=dict, repr=False, compare=False
    )
    """Files with fields, each parsed once."""

    def value(self, credential: CredentialConfig) -> Secret | Problem | SourceError:
        """The value of a credential that is a secret, or why there is none. Raises nothing."""
        snapshot, name = self.sources[credential.source], credential.secret or ""
        if isinstance(snapshot, SourceError):
            return snapshot
        value = snapshot.values[name]
        if credential.field is not None and credential.form is not None and isinstance(value, Secret):
            key = credential.source, name, credential.form
            document = self._documents.get(key)
            if document is None:
                document = self._documents[key] = parse(value, credential.form)
            value = document.field(credential.field) if isinstance(document, ParsedFile) else document
        if credential.trim and isinstance(value, Secret):
            content = value.reveal()
            trimmed = content.removesuffix(b"\n")
            if trimmed != content:
                trimmed = trimmed.removesuffix(b"\r")
            value = Secret(trimmed) if trimmed else Problem.EMPTY
        return value

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


NOTHING = Publication({})
"""What VMs see that use no source."""


def read(config: Config, wanted: Mapping[str, Iterable[str]]) -> Publication:
    """Read the named secrets of each source. Raises nothing: a source that cannot be read has its error."""
    return Publication({source: _read(config, source, names) for source, names in sorted(wanted.items())})


def _read(config: Config, source: str, names: Iterable[str]) -> Snapshot | SourceError:
    of = config.source_of(source)
    try:
        return take(Path(of.path), names, follow_links=of.follow_links, name=source)
    except SourceError as error:
        return error
