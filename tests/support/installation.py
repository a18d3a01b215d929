# SPDX-License-Identifier: MIT
"""credferry installed into a throwaway host from this checkout, as a distribution's package would do it."""

from __future__ import annotations

import os
import py_compile
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.host import Host

CHECKOUT = Path(__file__).resolve().parents[2]
VM_USER = "microvm"
HYPERVISOR = "/usr/bin/cloud-hypervisor"

_MODULES = "/usr/lib/credferry"
_TEST_MODULES = "/usr/lib/credferry-test"

# -I: neither the environment nor the working directory decides what is imported.
_AGENT = """#!{python} -I
import sys

sys.path.insert(0, "{modules}")
from credferry.agent.cli import main

sys.exit(main())
"""
_LAUNCHER = """#!/usr/bin/python3 -IS
import gc
import sys

gc.disable()  # until all is imported, there is no garbage
sys.path.insert(0, "{modules}")
from credferry.launcher.__main__ import main

gc.freeze()
gc.enable()
sys.exit(main())
"""
_STAND_IN = """#!/bin/sh
exec /usr/bin/python3 -I {modules}/hypervisor/__main__.py "$@"
"""

# Where contrib/ goes; what does not exist (yet) is passed over.
_CONTRIB = {
    "systemd": "/usr/lib/systemd/system",
    "catalog": "/usr/lib/systemd/catalog",
    "dbus": "/usr/share/dbus-1/system.d",
    "polkit": "/usr/share/polkit-1/rules.d",
}


_NO_START_LIMIT = (
    "/etc/systemd/system/credferry.service.d/00-tests.conf",
    "[Unit]\nStartLimitIntervalSec=0\n",
)
"""systemd refuses the sixth start of a unit within ten seconds. On a fast machine, tests get there."""


def install(host: Host, *, hypervisor: Path | None = None) -> None:
    """Install agent, launcher, units and a cloud-hypervisor: a real one where its path is given.

    May be called again: files are written anew, and systemd reads its units again.
    """
    for package in ("agent", "launcher"):
        _copy(host, CHECKOUT / package, f"{_MODULES}/credferry/{package}")
    host.write("/usr/bin/credferry", _AGENT.format(python=sys.executable, modules=_MODULES), 0o755)
    host.write("/usr/bin/credferry-launch", _LAUNCHER.format(modules=_MODULES), 0o755)
    install_hypervisor(host, hypervisor)
    for name, target in _CONTRIB.items():
        _copy(host, CHECKOUT / "contrib" / name, target)
    host.write(*_NO_START_LIMIT)
    if (CHECKOUT / "contrib/catalog").is_dir():
        host.run("journalctl", "--update-catalog")
    if host.run("getent", "passwd", VM_USER, check=False).returncode != 0:
        host.run("groupadd", "--system", "--force", "kvm")
        host.run(
            "useradd", "--system", "--gid=kvm", "--home-dir=/var/lib/microvms", "--no-create-home", VM_USER
        )
    host.run("systemctl", "daemon-reload")


def install_hypervisor(host: Host, hypervisor: Path | None = None) -> None:
    """Install a cloud-hypervisor alone: a real one where its path is given, else the stand-in."""
    if hypervisor:
        host.write(HYPERVISOR, hypervisor.read_bytes(), 0o755)
    else:
        _copy(host, CHECKOUT / "tests/support/hypervisor", f"{_TEST_MODULES}/hypervisor")
        host.write(HYPERVISOR, _STAND_IN.format(modules=_TEST_MODULES), 0o755)


def install_users(host: Host) -> None:
    """Make the group that may ask the agent, and the user of an agent without root."""
    users = (CHECKOUT / "contrib/sysusers/credferry.conf").read_text()
    host.write("/usr/lib/sysusers.d/credferry.conf", users)
    host.run("systemd-sysusers", "credferry.conf")


def serve(host: Host, vm: str) -> None:
    """Let credferry serve a VM: put its drop-in beside the VM's unit, as an operator does."""
    drop_in = (CHECKOUT / "contrib/systemd/credferry-vm.conf").read_text()
    host.write(f"/etc/systemd/system/microvm@{vm}.service.d/50-credferry.conf", drop_in)
    host.run("systemctl", "daemon-reload")


def _copy(host: Host, source: Path, target: str) -> None:
    for file in _files(source):
        mode = 0o755 if os.access(file, os.X_OK) else 0o644
        inside = Path(target, file.relative_to(source))
        host.write(str(inside), file.read_bytes(), mode)
        if file.suffix == ".py":
            bytecode = f"{inside.stem}.{sys.implementation.cache_tag}.pyc"
            host.write(f"{inside.parent}/__pycache__/{bytecode}", _compiled(file, inside))


@cache
def _compiled(file: Path, inside: Path) -> bytes:
    """Bytecode of a module: as in the package, nobody in the host compiles a module at each start.

    Python compares it with its source by hash, so that a test may change an installed module.
    """
    with tempfile.TemporaryDirectory() as directory:
        target = Path(directory, "module.pyc")
        mode = py_compile.PycInvalidationMode.CHECKED_HASH
        py_compile.compile(
            os.fspath(file), os.fspath(target), str(inside), doraise=True, invalidation_mode=mode
        )
        return target.read_bytes()


def _files(directory: Path) -> Iterator[Path]:
    for path in sorted(directory.rglob("*")) if directory.is_dir() else ():
        if path.is_file() and "__pycache__" not in path.parts:
            yield path
