# SPDX-License-Identifier: MIT
"""A VM's unit: whether it exists and has the settings of contrib/systemd/credferry-vm.conf."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from credferry.agent.doctor import probe, unit_files
from credferry.agent.doctor.chain import SEAL
from credferry.agent.doctor.finding import Finding, Severity, hint, ok, problem
from credferry.agent.systemd.units import HEALTH_UNIT
from credferry.launcher.handoff import (
    CREDENTIAL_PREFIX,
    EVIDENCE_PARENT,
    MANIFEST_FILE,
    RUNTIME_PARENT,
    evidence_name,
    unit_credential,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from credferry.agent.config.model import VmConfig
    from credferry.agent.doctor.chain import Chain

_REFUSALS: Final = (64, 65, 69)
"""The launcher's exit statuses for faults that another start does not repair."""
_NIXOS: Final = "credferry's NixOS module sets it: services.credferry.vms.{vm}; then switch"


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting of the drop-in. Its users replace ``{vm}`` and ``{store}`` in the line."""

    check: str
    section: str
    line: str
    holds: Callable[[Mapping[str, Any], str], bool]
    """Whether a unit with these properties has the setting in this line."""
    why: str
    severity: Severity = Severity.PROBLEM
    restart: bool = False
    """Whether a running VM must be restarted before the setting takes effect."""


def _loads(unit: Mapping[str, Any], line: str) -> bool:
    return line.partition("=")[2].split(":", 1) in unit["LoadCredentialEncrypted"]


def _prevents(unit: Mapping[str, Any], _line: str) -> bool:
    statuses, signals = unit["RestartPreventExitStatus"]
    return set(_REFUSALS) <= set(statuses) and signal.SIGUSR2 in signals


_EVIDENCE: Final = f"/run/{EVIDENCE_PARENT}/{evidence_name('{vm}', '${{INVOCATION_ID}}')}"


def _names_evidence(unit: Mapping[str, Any], line: str) -> bool:
    """Whether a command of the unit names the same file as the line. The program's path may differ."""
    name, _, command = line.partition("=")
    return any(command.rpartition(" ")[2] in argv for _program, argv, *_ in unit[name])


SETTINGS: Final = (
    Setting(
        "vm.credentials",
        "Service",
        f"LoadCredentialEncrypted={CREDENTIAL_PREFIX}:{{store}}/vms/{{vm}}/current",
        _loads,
        "the VM gets no credentials, or another's, and its launcher refuses to start it",
        restart=True,
    ),
    Setting(
        "vm.runtime-directory",
        "Service",
        f"RuntimeDirectory={RUNTIME_PARENT}/{{vm}}",
        lambda unit, line: line.partition("=")[2] in unit["RuntimeDirectory"],
        "the launcher has no place for its stamp, and refuses to start the VM",
        restart=True,
    ),
    Setting(
        "vm.evidence",
        "Service",
        "ExecStartPre=-+/usr/bin/install -D -m 0600 "
        f"${{{{CREDENTIALS_DIRECTORY}}}}/{unit_credential(MANIFEST_FILE)} {_EVIDENCE}",
        _names_evidence,
        "what the VM is started with is not known for sure: the agent does not restart it",
    ),
    Setting(
        "vm.evidence.removal",
        "Service",
        f"ExecStopPost=-+/usr/bin/rm -f {_EVIDENCE}",
        _names_evidence,
        "evidence of starts that are over piles up in /run",
        Severity.HINT,
    ),
    Setting(
        "vm.runtime-directory.mode",
        "Service",
        "RuntimeDirectoryMode=0755",
        lambda unit, _line: unit["RuntimeDirectoryMode"] & 0o005 == 0o005,  # noqa: PLR2004 (r-x for others)
        "an agent that is not root cannot read the launcher's report, and waits for it in vain",
        Severity.HINT,
        restart=True,
    ),
    Setting(
        "vm.restart-prevention",
        "Service",
        f"RestartPreventExitStatus={' '.join(map(str, _REFUSALS))} SIGUSR2",
        _prevents,
        "what the launcher refuses is started again for ever, every few seconds",
    ),
    Setting(
        "vm.start-limit",
        "Unit",
        "StartLimitIntervalSec=0",
        lambda unit, _line: unit["StartLimitIntervalUSec"] == 0,
        "a few rotations in a row are taken for a crash loop, and leave the VM down",
    ),
    Setting(
        "vm.restart",
        "Service",
        "Restart=always",
        lambda unit, _line: unit["Restart"] == "always",
        "when its guest reboots, the VM ends, to start anew with fresh secrets: it would stay down",
    ),
    Setting(
        "vm.order",
        "Unit",
        f"After={SEAL}",
        lambda unit, _line: SEAL in unit["After"],
        "started with the host, the VM may start on yesterday's secrets, and is restarted at once",
        Severity.HINT,
    ),
    Setting(
        "vm.mounts",
        "Service",
        "PrivateMounts=yes",
        lambda unit, _line: bool(unit["PrivateMounts"]),
        "the VM's user can read what other units of that user have in /run/credentials",
        Severity.HINT,
        restart=True,
    ),
    Setting(
        "vm.proc",
        "Service",
        "ProtectProc=invisible",
        lambda unit, _line: unit["ProtectProc"] == "invisible",
        "the VM's user sees other users' processes",
        Severity.HINT,
        restart=True,
    ),
    Setting(
        "vm.core",
        "Service",
        "LimitCORE=0",
        lambda unit, _line: unit["LimitCORE"] == 0,
        "a core dump of the hypervisor would hold its guest's memory, with its secrets",
        Severity.HINT,
        restart=True,
    ),
)
"""The drop-in's settings, and `vm.restart`, which VMs' units already have."""


def check(chain: Chain, vm: VmConfig) -> Iterator[Finding]:
    """Whether systemd has the unit, has read its latest files, and could start it."""
    unit = chain.unit(vm)
    why = "the VM cannot be started"
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
                f"there is no unit {vm.unit}",
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
            f"{vm.unit} was changed after systemd has read it",
            vm=vm.name,
            why="systemd goes by what was there before",
            remedy="have it read again",
            commands=unit_files.reload_units(),
        )
    instance = re.search(r"@(.+)\.service\Z", vm.unit)
    if instance is not None and instance[1] != vm.name:
        yield hint(
            "vm.unit.instance",
            f"{vm.unit} is not an instance of the VM's name",
            vm=vm.name,
            why="%i in a drop-in stands for another VM's name there",
            remedy=f"write {vm.name} in place of %i in the drop-in",
        )


def check_settings(chain: Chain, vm: VmConfig) -> Iterator[Finding]:
    """Whether the unit has all settings that a secret needs on its way to the guest."""
    unit = chain.unit(vm)
    if unit["LoadState"] != "loaded":
        return
    missing = [
        (setting, line)
        for setting in SETTINGS
        for line in (setting.line.format(vm=vm.name, store=chain.state),)
        if not setting.holds(unit, line)
    ]
    if {"vm.credentials", "vm.runtime-directory"} <= {setting.check for setting, _ in missing} and not any(
        name == CREDENTIAL_PREFIX for name, _ in unit["LoadCredentialEncrypted"]
    ):
        yield _no_drop_in(chain.state, vm)
        return
    for setting, line in missing:
        yield Finding(
            setting.severity,
            setting.check,
            f"{vm.unit} has not {line}",
            vm.name,
            setting.why,
            _remedy(vm, f"add it to [{setting.section}] of the unit"),
            unit_files.extend(vm.unit, setting.section, [line], restart=setting.restart),
        )
    if not missing:
        yield ok("vm.settings", f"{vm.unit} has all of credferry-vm.conf", vm.name)


def check_health(_chain: Chain, vm: VmConfig) -> Iterator[Finding]:
    """Whether the VM's health check can be started, if the configuration says that there is one."""
    if not vm.health:
        return
    name = HEALTH_UNIT.format(vm=vm.name)
    state = probe.unit(name)["LoadState"]
    if state == "loaded":
        yield ok("vm.health", f"{name} can be started", vm.name)
        return
    yield problem(
        "vm.health",
        f"{name}: {state}",
        vm=vm.name,
        why="no restart can be found healthy: each is rolled back",
        remedy="unmask it"
        if state == "masked"
        else "install credferry-health@.service, from contrib/systemd",
        commands=unit_files.unmask(name) if state == "masked" else (),
    )


def drop_in(store: Path, vm: VmConfig) -> list[str]:
    """The lines of credferry-vm.conf for a VM."""
    lines = []
    for section in ("Unit", "Service"):
        lines.append(f"[{section}]")
        lines += [
            setting.line.format(vm=vm.name, store=store)
            for setting in SETTINGS
            if setting.section == section and setting.check != "vm.restart"
        ]
    return lines


def _no_drop_in(store: Path, vm: VmConfig) -> Finding:
    path = f"{unit_files.SYSTEM}/{vm.unit}.d/50-credferry.conf"
    return problem(
        "vm.drop-in",
        f"{vm.unit} has no drop-in for credferry",
        vm=vm.name,
        why="the VM gets no credentials, and its launcher refuses to start it",
        remedy=_remedy(vm, "put contrib/systemd/credferry-vm.conf there"),
        commands=()
        if probe.is_nixos()
        else (*unit_files.write(path, drop_in(store, vm)), *unit_files.reload_units(vm.unit)),
    )


def _remedy(vm: VmConfig, elsewhere: str) -> str:
    return _NIXOS.format(vm=vm.name) if probe.is_nixos() else elsewhere
