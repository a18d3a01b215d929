# SPDX-License-Identifier: MIT
"""The configuration's data about secrets: where they are published, and what a VM takes of them."""

from __future__ import annotations

import enum
import re
from typing import Annotated

import msgspec

from credferry.agent.config.values import AbsolutePath, Seconds


class Format(enum.StrEnum):
    """What a file with fields is written in."""

    JSON = "json"
    YAML = "yaml"
    DOTENV = "dotenv"


_ENDINGS = {".json": Format.JSON, ".yaml": Format.YAML, ".yml": Format.YAML, ".env": Format.DOTENV}
_DOT = re.compile(r"(?<!\\)\.")


def field_parts(name: str, form: Format) -> list[str]:
    """The steps to a field. A dot that belongs to a key has a backslash before it; dotenv has no steps."""
    if form is Format.DOTENV:
        return [name]
    return [part.replace("\\.", ".") for part in _DOT.split(name)]


def source_key(name: str) -> str:
    """The table of a source in the configuration; the default source has no name."""
    return f"sources.{name}" if name else "source"


class SourceConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where secrets are published, and how changes there are taken for settled."""

    path: AbsolutePath = "/run/secrets"
    follow_links: bool = False
    """Whether a symlink in the source may lead out of it."""
    quiet_seconds: Seconds = 1.0
    """How long a file written in place must have stayed the same; a symlink's swap needs no settling."""
    quiet_max_seconds: Seconds = 10.0
    """After this long the source is read even if files are still changing."""
    resync_seconds: Annotated[float, msgspec.Meta(ge=0.1, le=86_400)] = 60.0
    """Every so often the source is looked at without a hint, for what inotify cannot see."""


class CredentialConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One credential of a VM: a secret of a source, or a text that is none."""

    secret: str | None = None
    source: str = ""
    """The source that publishes the secret, by its name in ``[sources]``; empty for the default source."""
    field: str | None = None
    """Takes this field of the secret, which is a file of JSON, YAML or dotenv; else the whole file."""
    format: Format | None = None
    """What the file is written in, if its name does not end in .json, .yaml, .yml or .env."""
    trim: bool = False
    """Removes one newline at the end of the value."""
    max_age_days: Annotated[int, msgspec.Meta(ge=1, le=36_500)] | None = None
    """At this age of the value, the agent warns. It does nothing else."""
    text: str | None = None
    required: bool = True
    seal: bool | None = None
    """Whether it is sealed for the guest; by default every secret of a VM with ``guest_key`` is."""
    live: bool = True
    """Whether a change of it can be pushed to a live VM. Otherwise it restarts the VM."""

    @property
    def origin(self) -> str:
        """Where its value comes from, in words."""
        if self.secret is None:
            return "the configuration"
        parts = [self.field, self.secret, self.source]
        return " of ".join(part for part in parts if part)

    @property
    def called(self) -> str:
        """Its secret in a message."""
        field = "" if self.field is None else f"field {self.field!r} of "
        return f"{field}secret {self.secret!r}" + (f" of source {self.source}" if self.source else "")

    @property
    def place(self) -> str:
        """Names what is taken of its secret: the same for all VMs that take the same."""
        of = f"source/{self.source}" if self.source else "secret"
        # A name in a source has no NUL, so no other name reads like one with a field.
        field = "" if self.field is None else f"\0{self.form}\0{self.field}"
        return f"{of}/{self.secret}{field}" + ("\0trim" if self.trim else "")

    @property
    def form(self) -> Format | None:
        """What the file is written in, if ``field`` is set; None if that is not known."""
        if self.format is not None or self.secret is None:
            return self.format
        name = self.secret.rpartition("/")[2]
        return next((form for ending, form in _ENDINGS.items() if name.endswith(ending)), None)
