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


def test_classes_that_threads_use_are_made_before_the_threads() -> None:
    """PyGObject makes a class at its first use, which two threads must not do at the same time."""
    script = (
        "from credferry.agent.bus.connection import GLib; "
        "print({'VariantType', 'VariantBuilder', 'MainLoop'} - vars(GLib._introspection_module).keys())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "set()\n"
