# SPDX-License-Identifier: MIT
"""Names on D-Bus that several modules use."""

from __future__ import annotations

import re

MANAGER_INTERFACE = "org.freedesktop.DBus.ObjectManager"
PROPERTIES_INTERFACE = "org.freedesktop.DBus.Properties"
BUS = ("org.freedesktop.DBus", "/org/freedesktop/DBus")
"""The bus itself: its name, which is also its interface's name, and its object path."""
ERROR_PREFIX = "org.credferry.Error."


def label(name: str) -> str:
    """A name escaped for an object path, as systemd escapes unit names (sd_bus_path_encode(3))."""
    escaped = re.sub(rb"[^A-Za-z0-9]|\A[0-9]", lambda found: b"_%02x" % found[0][0], name.encode())
    return escaped.decode() or "_"


def unit_path(name: str) -> str:
    """The object path of a unit. systemd loads a unit that it is asked for by this path."""
    return f"/org/freedesktop/systemd1/unit/{label(name)}"
