# SPDX-License-Identifier: MIT
"""``STATE/fleet.json``: the etcd cluster that keeps the slots of this host's fleet, as last seen.

Another etcd, or the same one with lost data, would give slots a second time: see `agent.fleet.cluster`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final

import msgspec

from credferry.agent.errors import StoreError
from credferry.agent.store.files import make_directory, replace_durably, store_error
from credferry.agent.untrusted import UntrustedFileError, read_untrusted

if TYPE_CHECKING:
    from pathlib import Path

_FILE: Final = "fleet.json"
_SIZE_MAX: Final = 4096


class _Content(msgspec.Struct, frozen=True):
    cluster: str
    revision: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


@dataclass(frozen=True, slots=True)
class FleetCluster:
    """The record of one store."""

    state: Path

    @property
    def path(self) -> Path:
        """Its file."""
        return self.state / _FILE

    def read(self) -> tuple[str, int] | None:
        """The cluster's ID and its revision; None if there is no record. Raises `StoreError`.

        A record that cannot be read does not count as missing: any cluster would do then.
        """
        try:
            text = read_untrusted(self.path, limit=_SIZE_MAX, below=self.state)
            found = msgspec.json.decode(text, type=_Content)
        except FileNotFoundError:
            return None
        except (UntrustedFileError, ValueError, RecursionError):
            # Too large, a link, or no record: room on the disk would not help.
            raise StoreError(
                f"{self.path}: cannot be read",
                hint="make sure that no slot is in use, then: credferry fleet forget-cluster",
            ) from None
        except OSError as error:
            raise store_error(self.path, error) from None
        return found.cluster, found.revision

    def write(self, cluster: str, revision: int) -> None:
        """Write what `read` returns. Raises `StoreError`."""
        try:
            make_directory(self.state)
            replace_durably(self.path, msgspec.json.encode(_Content(cluster, revision)))
        except OSError as error:
            raise store_error(self.path, error) from None

    def forget(self) -> bool:
        """Remove the record; False if there was none. Raises `StoreError`."""
        try:
            self.path.unlink()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise store_error(self.path, error) from None
        return True
