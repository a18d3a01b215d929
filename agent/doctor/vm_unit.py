# SPDX-License-Identifier: MIT
"""A VM's unit: whether it exists and has the settings of contrib/systemd/credferry-vm.conf."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from credferry.agent.doctor import drop_in, probe, unit_files
from credferry.agent.doctor.finding import Finding, hint, ok, problem
from credferry.agent.doctor.startable import not_loaded
from credferry.agent.systemd.units import HEALTH_UNIT
from credferry.launcher.handoff import CREDENTIAL_PREFIX, Channel

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from credferry.agent.config.model import VmConfig
    from credferry.agent.doctor.chain import Chain

_NIXOS: Final = "credferry's NixOS module sets it: services.credferry.vms.{vm}; then switch"


def check(chain: Chain, vm: VmConfig) -> Iterator[Finding]:
    """Whether systemd has the unit, has read its latest files, and could start it."""
    unit = chain.unit(vm)
    why = "the VM cannot start"
    match unit["LoadState"]:
        case "loaded":
            yield ok("vm.unit", f"{vm.unit} is {unit['ActiveState']}", vm.name)
        case "masked":
            yield problem(
                "vm.unit",
                f"{vm.unit} is masked",
                vm=vm.name,
                why=why,
                remedy="unmask it",
                commands=unit_files.unmask(vm.unit),
            )
            return
        case "not-found":
            yield problem(
                "vm.unit",
                f"systemd has no unit {vm.unit}",
                vm=vm.name,
                why=why,
                remedy=f"correct unit in [vms.{vm.name}]; or install microvm@.service",
            )
            return
        case state:
            yield problem(
                "vm.unit",
                f"{vm.unit}: {state}",
                vm=vm.name,
                why=why,
                remedy=f"see: systemd-analyze verify {vm.unit}",
            )
            return
    if unit["NeedDaemonReload"]:
        yield problem(
            "vm.unit.reload",
            f"the files of {vm.unit} have changed since systemd read them",
            vm=vm.name,
            why="systemd still uses the previous files",
            remedy="make systemd read them again",
            commands=unit_files.reload_units(),
        )
    instance = re.search(r"@(.+)\.service\Z", vm.unit)
    if instance is not None and instance[1] != vm.name:
        yield hint(
            "vm.unit.instance",
            f"{vm.unit} is not named after VM {vm.name}",
            vm=vm.name,
            why="%i in a drop-in of this unit stands for another name",
            remedy=f"write {vm.name} in place of %i in the drop-in",
        )


def check_settings(chain: Chain, vm: VmConfig) -> Iterator[Finding]:
    """Whether the unit has all settings that a secret needs on its way to the guest."""
    unit = chain.unit(vm)
    if unit["LoadState"] != "loaded":
        return
    missing = [
        (setting, line)
        for setting in drop_in.settings_of(vm)
        for line in (setting.line.format(vm=vm.name, store=chain.state),)
        if not setting.holds(unit, line)
    ]
    second = "vm.evidence" if vm.channel is Channel.DIRECTORY else "vm.runtime-directory"
    if {"vm.credentials", second} <= {setting.check for setting, _ in missing} and not any(
        name == CREDENTIAL_PREFIX for name, _ in unit["LoadCredentialEncrypted"]
    ):
        yield _no_drop_in(chain.state, vm)
        return
    for setting, line in missing:
        yield Finding(
            setting.severity,
            setting.check,
            f"{vm.unit} does not have {line}",
            vm.name,
            setting.why,
            _remedy(vm, f"add it to [{setting.section}] of the unit"),
            unit_files.extend(vm.unit, setting.section, [line], restart=setting.restart),
        )
    if not missing:
        yield ok("vm.settings", f"{vm.unit} has all settings of {_file(vm)}", vm.name)


def check_health(_chain: Chain, vm: VmConfig) -> Iterator[Finding]:
    """Whether the VM's health check can be started, if the configuration says that there is one."""
    if not vm.health:
        return
    name = HEALTH_UNIT.format(vm=vm.name)
    missing = not_loaded(
        "vm.health",
        vm,
        name,
        probe.unit(name),
        why="the agent cannot run the health check, so it rolls back every restart of this VM",
        install="install credferry-health@.service, from contrib/systemd",
    )
    yield missing or ok("vm.health", f"{name} can be started", vm.name)


def _no_drop_in(store: Path, vm: VmConfig) -> Finding:
    path = f"{unit_files.SYSTEM}/{vm.unit}.d/50-credferry.conf"
    return problem(
        "vm.drop-in",
        f"{vm.unit} has no drop-in for credferry",
        vm=vm.name,
        why="the unit gets no credentials"
        if vm.channel is Channel.DIRECTORY
        else "the VM gets no credentials, and its launcher refuses to start it",
        remedy=_remedy(vm, f"install contrib/systemd/{_file(vm)} there"),
        commands=()
        if probe.is_nixos()
        else (*unit_files.write(path, drop_in.lines_for(vm, store)), *unit_files.reload_units(vm.unit)),
    )


def _file(vm: VmConfig) -> str:
    return "credferry-unit.conf" if vm.channel is Channel.DIRECTORY else "credferry-vm.conf"


def _remedy(vm: VmConfig, elsewhere: str) -> str:
    return _NIXOS.format(vm=vm.name) if probe.is_nixos() else elsewhere
