# SPDX-License-Identifier: MIT
"""Finds other causes of a VM's restart when its secrets change: each rotation would restart it twice."""

from __future__ import annotations

import json
import threading
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from credferry.agent.doctor import probe
from credferry.agent.doctor.finding import ok, problem
from credferry.agent.doctor.source import PRODUCERS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from credferry.agent.config.model import VmConfig
    from credferry.agent.doctor.chain import Chain
    from credferry.agent.doctor.finding import Finding

_WHY = "each rotation restarts the VM twice, once without credferry's order, limits and rollback"


def check(chain: Chain, vm: VmConfig) -> Iterator[Finding]:
    """Path units that trigger the VM's unit or restart it, and sops-nix's own restarts."""
    unit = chain.unit(vm)
    if unit["LoadState"] != "loaded":
        return
    paths = sorted({each for each in unit["TriggeredBy"] if each.endswith(".path")} | _paths_to(vm.unit))
    for path in paths:
        yield problem(
            "vm.restarters.path",
            f"{path} restarts {vm.unit}",
            vm=vm.name,
            why=_WHY,
            remedy=f"remove systemd.paths.{path.removesuffix('.path')} from the host's modules; then switch"
            if probe.is_nixos()
            else "let only credferry restart the VM",
            commands=() if probe.is_nixos() else [f"systemctl disable --now {path}"],
        )
    secrets = sorted(_sops_restarts().get(vm.unit, ()))
    if secrets:
        yield problem(
            "vm.restarters.sops",
            f"sops-nix also restarts {vm.unit} when these secrets change: {', '.join(secrets)}",
            vm=vm.name,
            why=_WHY,
            remedy=f'remove "{vm.unit}" from restartUnits of these secrets: sops.secrets.NAME.restartUnits',
        )
    if not paths and not secrets:
        switch = (
            "; a NixOS switch also restarts it when the VM's own configuration has changed"
            if _is_triggered(unit)
            else ""
        )
        yield ok("vm.restarters", f"doctor found nothing else that restarts {vm.unit}{switch}", vm.name)


_once = threading.Lock()
"""Held while `_path_units` runs, so that the threads of several VMs do not all run it."""


def _paths_to(name: str) -> set[str]:
    """Path units in use that trigger a service whose command restarts the unit ``name``."""
    with _once:
        paths = _path_units()
    return {path for path, commands in paths.items() if any(name in each for each in commands)}


@cache
def _path_units() -> dict[str, list[str]]:
    """Each path unit in use, with those commands of its services that restart something."""
    found = {}
    for line in probe.quiet_lines("systemctl", "list-units", "--type=path", "--plain", "--no-legend"):
        path = line.split()[0]
        found[path] = [
            command
            for triggered in probe.unit(path)["Triggers"]
            for argv in probe.command_lines(probe.unit(triggered))
            for command in (" ".join(argv),)
            if "restart" in command
        ]
    return found


@cache
def _sops_restarts() -> dict[str, set[str]]:
    """For each unit, the secrets whose change makes sops-nix restart it, from sops-nix's manifest."""
    found: dict[str, set[str]] = {}
    for argv in probe.command_lines(probe.unit(PRODUCERS[0])):
        for word in argv:
            if word.endswith(".json") and (text := probe.text_of(Path(word))) is not None:
                manifest: dict[str, Any] = json.loads(text)
                for entry in (*manifest.get("secrets", []), *(manifest.get("templates") or [])):
                    for unit in (*(entry.get("restartUnits") or ()), *(entry.get("reloadUnits") or ())):
                        found.setdefault(unit, set()).add(entry["name"])
    return found


def _is_triggered(unit: Any) -> bool:  # noqa: ANN401 (a mapping of D-Bus values)
    files = [unit.get("FragmentPath", ""), *unit.get("DropInPaths", [])]
    return any("X-Restart-Triggers=" in (probe.text_of(Path(file)) or "") for file in files if file)
