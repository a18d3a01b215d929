# SPDX-License-Identifier: MIT
"""Commands that change units. The doctor prints them as advice and runs none of them."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING, Final

from credferry.agent.doctor import probe

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

SYSTEM: Final = "/etc/systemd/system"
_LAST: Final = "zz-credferry.conf"
"""systemd reads drop-ins in the order of their names, in all directories (systemd.unit(5)): this is last."""


def write(path: str, lines: Iterable[str]) -> tuple[str, ...]:
    """Commands that replace a file, and make its directory."""
    directory = shlex.quote(path.rpartition("/")[0])
    content = " ".join(shlex.quote(line) for line in lines)
    return (f"mkdir -p {directory}", f"printf '%s\\n' {content} >{shlex.quote(path)}")


def extend(unit: str, section: str, lines: Sequence[str], *, restart: bool = False) -> tuple[str, ...]:
    """Commands that add settings to a unit, after all others; none on NixOS, whose modules set them."""
    if probe.is_nixos():
        return ()
    directory = shlex.quote(f"{SYSTEM}/{unit}.d")
    content = " ".join(shlex.quote(line) for line in (f"[{section}]", *lines))
    return (
        f"mkdir -p {directory}",
        f"printf '%s\\n' {content} >>{directory}/{_LAST}",
        *reload_units(unit if restart else ""),
    )


def reload_units(restart: str = "") -> tuple[str, ...]:
    """Commands that make systemd reload its units, and restart the unit ``restart`` if it runs."""
    again = (f"systemctl try-restart {shlex.quote(restart)}",) if restart else ()
    return ("systemctl daemon-reload", *again)


def unmask(unit: str) -> tuple[str, ...]:
    """Commands that undo ``systemctl mask``, for this boot and permanently, of the unit and its template."""
    template = re.sub(r"@.+(?=\.)", "@", unit)
    names = " ".join(shlex.quote(each) for each in dict.fromkeys((unit, template)))
    return (f"systemctl unmask {names}", f"systemctl unmask --runtime {names}")
