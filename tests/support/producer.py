# SPDX-License-Identifier: MIT
"""Producers of secrets inside a throwaway host, each with its own way of publishing.

Values reach the host by standard input: a producer that showed them in an argument vector would spoil
every search for leaks.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.support.host import Host

_INSIDE = "/usr/lib/credferry-test/producer_inside.py"


class _Producer:
    source = "/run/secrets"

    def __init__(self, host: Host) -> None:
        self._host = host
        # /usr is on the overlay: the host has its own copy, whatever becomes of ours.
        host.write(_INSIDE, Path(__file__).with_name("producer_inside.py").read_bytes())
        if host.run("getent", "group", "keys", check=False).returncode != 0:
            host.run("groupadd", "--system", "keys")  # NixOS has it by itself

    def write_in_place(self, name: str, value: bytes) -> None:
        """Overwrite one published secret, neither atomically nor as a new generation."""
        self._call("write_in_place", {name: value}, source=self.source)

    def remove(self) -> None:
        """Take away all that is published, the source itself included."""
        self._call("remove", source=self.source)

    def _call(self, do: str, files: Mapping[str, bytes] | None = None, **arguments: Any) -> Any:  # noqa: ANN401 (JSON)
        call = {"do": do, **arguments}
        if files is not None:
            call["files"] = {name: base64.b64encode(value).decode() for name, value in files.items()}
        return json.loads(self._host.run("/usr/bin/python3", "-IS", _INSIDE, stdin=json.dumps(call)).stdout)


class SopsNix(_Producer):
    """sops-nix: generations in a ramfs on ``/run/secrets.d``, and a symlink that is renamed into place.

    ``keep`` is ``sops.keepGenerations``; 0 keeps all.
    """

    def __init__(self, host: Host, *, keep: int = 1) -> None:
        super().__init__(host)
        self._keep = keep

    def publish(self, secrets: Mapping[str, bytes]) -> int:
        """Publish a generation that holds exactly these secrets. Returns its number."""
        return self._install(secrets, swap=True)

    def dry_activate(self, secrets: Mapping[str, bytes]) -> int:
        """Write the next generation in full and leave it unpublished, as ``dry-activate`` does."""
        return self._install(secrets, swap=False)

    def _install(self, secrets: Mapping[str, bytes], *, swap: bool) -> int:
        generation = self._call("sops_nix", secrets, link=self.source, swap=swap, keep=self._keep)
        return int(generation)


class Agenix(_Producer):
    """agenix: the same shape on ``/run/agenix``, with ``ln -sfT`` and at most one generation."""

    source = "/run/agenix"

    def publish(self, secrets: Mapping[str, bytes]) -> int:
        """Publish a generation that holds exactly these secrets. Returns its number."""
        return int(self._call("agenix", secrets, link=self.source))


class MountedSource(_Producer):
    """clan's age and password-store backends: a mount point, and a new mount in its place."""

    def publish(self, secrets: Mapping[str, bytes]) -> str:
        """Replace the mount by one with exactly these secrets. Returns "first", "beneath" or "over"."""
        return str(self._call("mounted", secrets, target=self.source))
