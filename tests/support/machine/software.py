# SPDX-License-Identifier: MIT
"""What is installed in a machine: credferry from this checkout, as its package does it."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.guest import chroot_run
from tests.support.installation import CHECKOUT

if TYPE_CHECKING:
    from .build import Built
    from .machine import Machine

_UNITS = "usr/lib/systemd/system"
_MODULES = "usr/lib/credferry/credferry"
_PLACES = {
    "agent": f"{_MODULES}/agent",
    "launcher": f"{_MODULES}/launcher",
    "contrib/dbus": "usr/share/dbus-1/system.d",
    "contrib/sysusers": "usr/lib/sysusers.d",
    "contrib/debian/bin": "usr/bin",
}
_USERS = """\
set -e
getent group keys >/dev/null || groupadd --system keys
systemd-sysusers credferry.conf
systemctl daemon-reload
systemctl reload dbus
"""


def install(machine: Machine, built: Built) -> None:
    """Install agent, launcher and units."""
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        place.chmod(0o755)
        for source, target in _PLACES.items():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(CHECKOUT / source, place / target, dirs_exist_ok=True, ignore=ignored)
        (place / _UNITS).mkdir(parents=True)
        for unit in (CHECKOUT / "contrib/systemd").iterdir():
            if unit.suffix in {".service", ".target"}:
                shutil.copy(unit, place / _UNITS)
        _compile(built, place)
        machine.unpack(place)
    machine.run("sh", "-c", _USERS)


def _compile(built: Built, place: Path) -> None:
    """Compile all for the machine's Python, here: under emulation this would take longer than a boot."""
    command = ["python3", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash"]
    done = chroot_run(built.root, [*command, "-s", "/share", "-p", "/", "/share/usr/lib"], share=place)
    if done.returncode:
        raise RuntimeError(f"cannot compile the modules: {done.stdout.decode()}")
