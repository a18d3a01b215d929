# SPDX-License-Identifier: MIT
"""Paths that the agent's unit hides from the agent. Other processes see a source there; the agent does not.

The unit's own settings decide, drop-ins included. If systemd cannot be asked, the shipped settings stand in.
Inside the unit, the table of mounts shows the same.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from credferry.agent.source.trail import Trail

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_TMP = ("/tmp", "/var/tmp")  # noqa: S108 (named, not used)
_HOMES = ("/home", "/root", "/run/user")
_DEVICES = ("/dev/shm", "/dev/mqueue", "/dev/hugepages")  # noqa: S108 (the same)
"""What a unit with ``PrivateDevices=`` still has of /dev (systemd, src/core/namespace.c)."""
_FIELDS = 5
_PLAIN = re.compile(r"[A-Za-z0-9/._@+-]+")


@dataclass(frozen=True, slots=True)
class Hidden:
    """A path that the agent cannot see, without links in it, and the setting of its unit that hides it."""

    path: str
    setting: str

    @property
    def text(self) -> str:
        """The problem, as a sentence for the operator. A path that links lead to may have any characters."""
        path = self.path if self.path.isprintable() else ascii(self.path)
        return f"{path} is hidden from the agent by {self.setting} of its unit"

    @property
    def lines(self) -> tuple[str, ...]:
        """Lines for a drop-in that show the path to the agent. They do not show a later replacement.

        Empty for a path that systemd would read in another way: what follows a line end would be a setting.
        """
        if not _PLAIN.fullmatch(self.path):
            return ()
        show = f"BindReadOnlyPaths=-{self.path}"
        if self.setting == "ProtectHome=yes":  # systemd mounts nothing below an inaccessible path
            return ("ProtectHome=tmpfs", show)
        return (show,)

    @property
    def remedy(self) -> str:
        """What the operator can do about it."""
        if not self.lines:
            return "publish below /run"
        return (
            "publish below /run; or add a drop-in to both credferry.service and "
            f"credferry-seal.service with, in [Service]: {', '.join(self.lines)}"
        )


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A unit's settings that hide paths."""

    inaccessible: Mapping[str, str]
    """By path that cannot be entered: the setting. Nothing can be mounted below such a path."""
    empty: Mapping[str, str]
    """By path that another directory is mounted on: the setting."""
    shown: frozenset[str] = frozenset()
    """Paths that a mount makes visible again."""

    def hides(self, path: str, *, is_step: bool = False) -> Hidden | None:
        """What hides a path without links in it; None for nothing. A step on the way only has to exist."""
        above = [path, *(str(each) for each in Path(path).parents)]
        for each in above:
            if each in self.inaccessible:
                return None if is_step and each == path else Hidden(path, self.inaccessible[each])
        for each in above:
            if each in self.shown:
                return None
            if each in self.empty:
                is_there = each == path or any(Path(path) in Path(shown).parents for shown in self.shown)
                return None if is_step and is_there else Hidden(path, self.empty[each])
        return None


def of_unit(properties: Mapping[str, Any]) -> Sandbox:
    """What a unit hides, from its properties in systemd (org.freedesktop.systemd1(5))."""
    inaccessible = {
        each.lstrip("-+"): "InaccessiblePaths=" for each in properties.get("InaccessiblePaths", ())
    }
    empty = {each[0]: "TemporaryFileSystem=" for each in properties.get("TemporaryFileSystem", ())}
    homes = properties.get("ProtectHome", "no")
    if homes in {"yes", "tmpfs"}:
        (inaccessible if homes == "yes" else empty).update(dict.fromkeys(_HOMES, f"ProtectHome={homes}"))
    # Since version 257 there is a third value, "disconnected". It hides them too.
    if properties.get("PrivateTmp", False) or properties.get("PrivateTmpEx", "no") != "no":
        empty.update(dict.fromkeys(_TMP, "PrivateTmp=yes"))
    shown = {each[1] for key in ("BindPaths", "BindReadOnlyPaths") for each in properties.get(key, ())}
    if properties.get("PrivateDevices", False):
        empty["/dev"] = "PrivateDevices=yes"
        shown.update(_DEVICES)
    return Sandbox(inaccessible, empty, frozenset(shown))


SHIPPED = of_unit({"ProtectHome": "yes", "PrivateTmp": True, "PrivateDevices": True})
"""What contrib/systemd/credferry.service hides, without a drop-in."""


def of_this_process() -> Sandbox:
    """What systemd hides from this process, by its table of mounts (proc(5)). Outside a unit: nothing."""
    inaccessible: dict[str, str] = {}
    empty: dict[str, str] = {}
    shown: set[str] = set()
    with suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
            fields = line.split(" ", _FIELDS)
            root, place = fields[3:5]
            for known in (inaccessible, empty):  # the last mount on a place is on top
                known.pop(place, None)
            shown.discard(place)
            # /run/systemd/inaccessible, or within a container /run/host/inaccessible.
            if "/inaccessible/" in root:
                inaccessible[place] = "ProtectHome=yes" if place in _HOMES else "InaccessiblePaths="
            elif "/systemd-private-" in root:
                empty[place] = "PrivateTmp=yes"
            else:
                shown.add(place)
    return Sandbox(inaccessible, empty, frozenset(shown))


def hidden(sandbox: Sandbox, source: str, names: Iterable[str] = ()) -> Hidden | None:
    """The first hidden path on the way to a source, or from there to a name; None for none."""
    trail = Trail()
    path = os.path.abspath(source)  # noqa: PTH100 (does not follow links)
    target = trail.follow(path, to_directory=True)
    for name in names if target is not None else ():
        trail.follow(name, target or "")
    found = sandbox.hides(target or path)
    steps = (os.path.join(directory, name) for directory, inside in trail.names.items() for name in inside)  # noqa: PTH118 (strings as the trail has them)
    return found or next(filter(None, (sandbox.hides(step, is_step=True) for step in sorted(steps))), None)
