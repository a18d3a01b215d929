# SPDX-License-Identifier: MIT
"""A live VM: whether its push unit can send to its guest, and whether a change would be pushed now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from credferry.agent.doctor import probe, unit_files
from credferry.agent.doctor.finding import hint, ok, problem
from credferry.agent.doctor.startable import not_loaded
from credferry.agent.reconcile.status import next_way
from credferry.agent.store.records import Way
from credferry.agent.systemd.units import PUSH_UNIT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from credferry.agent.config.model import VmConfig
    from credferry.agent.doctor.chain import Chain
    from credferry.agent.doctor.finding import Finding

_WHY: Final = "no push can succeed, so each change of the VM's secrets is handled as on_live_failure says"


def check(chain: Chain, vm: VmConfig) -> Iterator[Finding]:
    """Whether the VM's push unit exists, runs as the VM's user, and expects the VM's unit at the socket."""
    if not vm.live:
        return
    name = PUSH_UNIT.format(vm=vm.name)
    unit, own = probe.unit(name), chain.unit(vm)
    install = "install credferry-push@.service, from contrib/systemd"
    missing = not_loaded("vm.push", vm, name, unit, why=_WHY, install=install)
    if missing is not None:
        yield missing
        return
    if own["LoadState"] == "loaded" and unit["User"] != own.get("User", ""):
        yield problem(
            "vm.push.user",
            f"{name} runs as {unit['User'] or 'root'}, and {vm.unit} as {own.get('User', '') or 'root'}",
            vm=vm.name,
            why=_WHY + "; only the VM's user can connect to its vsock socket",
            remedy="give both units the same User=",
            commands=unit_files.extend(name, "Service", [f"User={own.get('User', '') or 'root'}"]),
        )
        return
    if not any(vm.unit in words for words in probe.command_lines(unit)):
        yield problem(
            "vm.push.unit",
            f"{name} does not expect {vm.unit} to listen at the VM's vsock socket",
            vm=vm.name,
            why=_WHY,
            remedy=f"name the VM's unit in ExecStart= of {name}: --unit {vm.unit}",
        )
        return
    yield _of_now(chain, vm, name)


def _of_now(chain: Chain, vm: VmConfig, name: str) -> Finding:
    observed, _ = chain.seen(vm)
    found = next_way(observed)
    if found is None or found.way is Way.PUSH:
        what = "a change would be pushed to its guest" if found is not None else f"{name} can be started"
        return ok("vm.push", what, vm.name)
    return hint(
        "vm.push.now",
        f"a change would restart the VM now: {found.why}",
        vm=vm.name,
        why="the VM is configured as live, so its guest should take changes while it runs",
        remedy=f"correct that; or restart the VM once: credferry restart {vm.name}",
    )
