# SPDX-License-Identifier: MIT
"""Commands that change units: what is printed as advice, and nothing that is done here."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING, Final

from credferry.agent.doctor import probe

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

SYSTEM: Final = "/etc/systemd/system"
_LAST: Final = "zz-credferry.conf"
"""Drop-ins are read in the order of their names, wherever they are (systemd.unit(5)): this one wins."""


def write(path: str, lines: Iterable[str]) -> tuple[str, ...]:
    """Write a file anew, with the directory that it needs."""
    directory = shlex.quote(path.rpartition("/")[0])
    content = " ".join(shlex.quote(line) for line in lines)
    return (f"mkdir -p {directory}", f"printf '%s\\n' {content} >{shlex.quote(path)}")


def extend(unit: str, section: str, lines: Sequence[str], *, restart: bool = False) -> tuple[str, ...]:
    """Add settings to a unit, behind all that others say of it; none on NixOS, whose modules do that."""
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
    """Have systemd read its units again, and restart one of them if it runs."""
    again = (f"systemctl try-restart {shlex.quote(restart)}",) if restart else ()
    return ("systemctl daemon-reload", *again)


def unmask(unit: str) -> tuple[str, ...]:
    """Undo ``systemctl mask``, be it for this boot or for good, of the unit or of its template."""
    template = re.sub(r"@.+(?=\.)", "@", unit)
    names = " ".join(shlex.quote(each) for each in dict.fromkeys((unit, template)))
    return (f"systemctl unmask {names}", f"systemctl unmask --runtime {names}")
