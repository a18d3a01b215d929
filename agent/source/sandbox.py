# SPDX-License-Identifier: MIT
"""What the agent's unit hides from it: a source there looks well to everybody else, and is never seen.

The unit's own settings decide, drop-ins included; where systemd cannot be asked, those that are shipped.
From inside, the table of mounts tells the same.
"""

from __future__ import annotations

import os
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


@dataclass(frozen=True, slots=True)
class Hidden:
    """A path that the agent cannot see, without links in it, and the setting of its unit that hides it."""

    path: str
    setting: str

    @property
    def text(self) -> str:
        """What is wrong, in words."""
        return f"{self.path} is hidden from the agent: its unit has {self.setting}"

    @property
    def lines(self) -> tuple[str, ...]:
        """A drop-in's lines that show it to the agent. They do not show what replaces it later."""
        show = f"BindReadOnlyPaths=-{self.path}"
        if self.setting == "ProtectHome=yes":  # below what is inaccessible, systemd mounts nothing
            return ("ProtectHome=tmpfs", show)
        return (show,)

    @property
    def remedy(self) -> str:
        """What to do about it."""
        return (
            "publish below /run, or show it to the agent with a drop-in of credferry.service and one of "
            f"credferry-seal.service that say, in [Service]: {', '.join(self.lines)}"
        )


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A unit's settings that hide paths."""

    inaccessible: Mapping[str, str]
    """Each path that cannot be entered, and by which setting. Nothing can be mounted below it."""
    empty: Mapping[str, str]
    """Each path that another directory is mounted on."""
    shown: frozenset[str] = frozenset()
    """What is mounted there all the same."""

    def hides(self, path: str, *, is_step: bool = False) -> Hidden | None:
        """Whether a path, without links in it, is hidden; a step on the way need only be there."""
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
    """What a unit hides, by its properties as systemd has them (org.freedesktop.systemd1(5))."""
    inaccessible = {
        each.lstrip("-+"): "InaccessiblePaths=" for each in properties.get("InaccessiblePaths", ())
    }
    empty = {each[0]: "TemporaryFileSystem=" for each in properties.get("TemporaryFileSystem", ())}
    homes = properties.get("ProtectHome", "no")
    if homes in {"yes", "tmpfs"}:
        (inaccessible if homes == "yes" else empty).update(dict.fromkeys(_HOMES, f"ProtectHome={homes}"))
    # From version 257 on there is a third answer, "disconnected", which hides them as well.
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
    """What systemd hides from this process, by the table of its mounts (proc(5)); nothing outside a unit."""
    inaccessible: dict[str, str] = {}
    empty: dict[str, str] = {}
    shown: set[str] = set()
    with suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
            fields = line.split(" ", _FIELDS)
            root, place = fields[3:5]
            for known in (inaccessible, empty):  # of several mounts on one place the last is on top
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
    """What is hidden on the way to a source, or on those from there to some names. Links are followed."""
    trail = Trail()
    path = os.path.abspath(source)  # noqa: PTH100 (does not follow links)
    target = trail.follow(path, to_directory=True)
    for name in names if target is not None else ():
        trail.follow(name, target or "")
    found = sandbox.hides(target or path)
    steps = (os.path.join(directory, name) for directory, inside in trail.names.items() for name in inside)  # noqa: PTH118 (strings as the trail has them)
    return found or next(filter(None, (sandbox.hides(step, is_step=True) for step in sorted(steps))), None)
