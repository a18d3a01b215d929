# SPDX-License-Identifier: MIT
"""The connection to the system bus, without a bus."""

from __future__ import annotations

import subprocess
import sys


def test_the_connection_needs_no_other_module_of_its_room() -> None:
    """Verbs publish nothing on the bus, and still have pydbus's part of each connection."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from credferry.agent.bus import connection; connection.Gio.DBusConnection.pydbus",
        ],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
