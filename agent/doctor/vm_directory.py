# SPDX-License-Identifier: MIT
"""The directory of a VM's files: whether another user than root can change what root's helpers run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from credferry.agent.doctor import probe
from credferry.agent.doctor.finding import hint, ok, problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from credferry.agent.config.model import VmConfig
    from credferry.agent.doctor.chain import Chain
    from credferry.agent.doctor.finding import Finding

_CHECK: Final = "vm.directory"
_PARENT: Final = Path("/var/lib/microvms")
_HELPERS: Final = ("microvm-tap-interfaces@{instance}.service", "microvm-virtiofsd@{instance}.service")
_LAUNCHER: Final = "credferry-launch"


def check(_chain: Chain, vm: VmConfig) -> Iterator[Finding]:
    """Whether root alone can change ``/var/lib/microvms/VM/current`` and what it leads to."""
    prefix, at, instance = vm.unit.removesuffix(".service").partition("@")
    current = _PARENT / instance / "current"
    if prefix != "microvm" or not at or not os.path.lexists(current):
        return
    found = probe.changeable(current)
    if found is None:
        yield ok(_CHECK, f"only root can change {current}", vm.name)
        return
    path, who = found
    if _is_refused(instance):
        yield problem(
            _CHECK,
            f"{who} can change {path}",
            vm=vm.name,
            why="the VM's helpers run as root and refuse its files, so the VM's next start fails",
            remedy="check that the VM's files are yours; then give the directory to root",
            commands=(f"chown root:root {path}", f"chmod go-w {path}"),
        )
        return
    yield hint(
        _CHECK,
        f"{who} can change {path}, and microvm.nix's helpers run programs below {current} as root",
        vm=vm.name,
        why="whoever takes over the hypervisor can put programs there, and root runs them at the VM's "
        "next start",
        remedy="no setting changes this: microvm.nix's units work this way. See SECURITY.md",
    )


def _is_refused(instance: str) -> bool:
    """Whether the VM's helpers go through the launcher, which checks the path and refuses it."""
    return any(
        _LAUNCHER in word
        for helper in _HELPERS
        for line in probe.command_lines(probe.unit(helper.format(instance=instance)))
        for word in line
    )
