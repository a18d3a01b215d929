# SPDX-License-Identifier: MIT
"""The configuration's data about secrets: where they are published, and what a VM takes of them."""

from __future__ import annotations

from typing import Annotated

import msgspec

from credferry.agent.config.values import AbsolutePath, Seconds


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
        return f"{self.secret} of {self.source}" if self.source else self.secret
