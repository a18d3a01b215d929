# SPDX-License-Identifier: MIT
"""The guest of a light live VM in the soak: it takes pushes, and writes down what it holds, as a start does.

``soak_guest.py VM``, in the runtime directory of the VM's unit. Standard library only.
"""

from __future__ import annotations

import base64
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.support.push_guest import Files, PushGuest
else:
    sys.path.insert(0, str(Path(__file__).parent))
    from push_guest import Files, PushGuest

_NAMES = ("OWN", "SHARED")
_SOCKET = "guest.sock"


class SoakGuest(PushGuest):
    """A guest in the mode ``takes``, which begins with what its start was given."""

    def __init__(self, given: Path) -> None:
        super().__init__(Path(_SOCKET), "takes")
        self._values = {name: (given / f"credferry_value.{name}").read_text() for name in _NAMES}
        self.held = (given / "credferry_value.credferry.manifest").read_text().splitlines()

    def _hold(self, manifest: list[str]) -> None:
        # After the loads: who sees what is delivered also sees how often something was.
        for name, (_kind, value) in self.pushes.pop()["credentials"].items():
            self._values[name] = base64.b64decode(value).decode()
        Path(".delivered").write_text(
            " ".join(self._values[name] for name in _NAMES) + "\n", encoding="ascii"
        )
        Path(".delivered").rename("delivered")
        super()._hold(manifest)


def main() -> None:
    """Serve until killed."""
    Files.LOADS = f"/run/soak/{sys.argv[1]}.loads"
    guest = SoakGuest(Path(os.environ["CREDENTIALS_DIRECTORY"]))
    Path("vsock").write_text(str(Path(_SOCKET).absolute()), encoding="ascii")
    guest.serve()


if __name__ == "__main__":
    main()
