# SPDX-License-Identifier: MIT
"""The operator's units around a VM's restarts: whether they can be started, and end within a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from credferry.agent.doctor import probe
from credferry.agent.doctor.finding import Finding, hint, ok, problem
from credferry.agent.doctor.startable import not_loaded

if TYPE_CHECKING:
    from collections.abc import Iterator

    from credferry.agent.config.model import VmConfig
    from credferry.agent.doctor.chain import Chain

_ENDLESS = 2**64 - 1
"""Microseconds: USEC_INFINITY."""


def check(_chain: Chain, vm: VmConfig) -> Iterator[Finding]:
    """Whether systemd can start each of the units each time, and none runs without a limit of its time."""
    for template in vm.units.templates:
        yield _checked(vm, vm.unit_of(template))


def _checked(vm: VmConfig, name: str) -> Finding:
    unit = probe.unit(name)
    missing = not_loaded(
        "vm.units",
        vm,
        name,
        unit,
        why="the agent cannot start it: a restart is put off, or the VM stays out of service after it",
        install=f"install it, or correct `units` of VM {vm.name}",
    )
    if missing is not None:
        return missing
    if unit.get("Type") != "oneshot":
        return hint(
            "vm.units",
            f"{name} is not of Type=oneshot",
            vm=vm.name,
            why="the agent goes on when systemd has started it, and does not wait for its end",
            remedy="set Type=oneshot in it",
        )
    if unit.get("RemainAfterExit"):
        return problem(
            "vm.units",
            f"{name} has RemainAfterExit=yes",
            vm=vm.name,
            why="it stays active after it has run, so its next start runs nothing, and counts as a failure",
            remedy="set RemainAfterExit=no in it",
        )
    if unit.get("TimeoutStartUSec") == _ENDLESS:
        return hint(
            "vm.units",
            f"{name} has no TimeoutStartSec=",
            vm=vm.name,
            why="the agent waits for its end: one that hangs keeps the VM's rollout waiting",
            remedy="set TimeoutStartSec= in it, such as 60s",
        )
    return ok("vm.units", f"{name} can be started", vm.name)
