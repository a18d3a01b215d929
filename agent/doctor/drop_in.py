# SPDX-License-Identifier: MIT
"""The settings of contrib/systemd/credferry-vm.conf and credferry-unit.conf, and whether a unit has them."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from credferry.agent.doctor.chain import SEAL
from credferry.agent.doctor.finding import Severity
from credferry.launcher.errors import REFUSALS
from credferry.launcher.handoff import (
    CREDENTIAL_PREFIX,
    EVIDENCE_PARENT,
    GUEST_KEY_FILE,
    GUEST_KEYS_PARENT,
    MANIFEST_FILE,
    RUNTIME_PARENT,
    Channel,
    evidence_name,
    unit_credential,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from credferry.agent.config.model import VmConfig


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
    of_launcher: bool = False
    """Whether only a unit that starts the launcher needs it."""


def _loads(unit: Mapping[str, Any], line: str) -> bool:
    return line.partition("=")[2].split(":", 1) in unit["LoadCredentialEncrypted"]


def _prevents(unit: Mapping[str, Any], _line: str) -> bool:
    statuses, signals = unit["RestartPreventExitStatus"]
    return set(REFUSALS) <= set(statuses) and signal.SIGUSR2 in signals


_FIRST: Final = "credferry-seal@{vm}.service"
_BEFORE_FIRST: Final = (
    "a VM that is added while the host runs fails until the agent has sealed its first generation"
)
_PILES_UP: Final = "records of past starts pile up in /run"
_GUEST_KEY: Final = f"/run/{GUEST_KEYS_PARENT}/{{vm}}"
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
        "the VM gets no credentials or another VM's, and its launcher refuses to start it",
        restart=True,
    ),
    Setting(
        "vm.runtime-directory",
        "Service",
        f"RuntimeDirectory={RUNTIME_PARENT}/{{vm}}",
        lambda unit, line: line.partition("=")[2] in unit["RuntimeDirectory"],
        "the launcher has no directory for its report, and refuses to start the VM",
        restart=True,
        of_launcher=True,
    ),
    Setting(
        "vm.evidence",
        "Service",
        "ExecStartPre=-+/usr/bin/install -D -m 0600 "
        f"${{{{CREDENTIALS_DIRECTORY}}}}/{unit_credential(MANIFEST_FILE)} {_EVIDENCE}",
        _names_evidence,
        "the agent cannot be sure what the VM was started with, and does not restart it",
    ),
    Setting(
        "vm.evidence.removal",
        "Service",
        f"ExecStopPost=-+/usr/bin/rm -f {_GUEST_KEY}/{GUEST_KEY_FILE} {_EVIDENCE}",
        _names_evidence,
        _PILES_UP,
        Severity.HINT,
        of_launcher=True,
    ),
    Setting(
        "vm.hand-over",
        "Service",
        f"ExecStartPre=+/bin/sh -c '[ ! -d {_GUEST_KEY} ] "
        "|| exec /usr/bin/credferry guest-key hand-over {vm}'",
        lambda unit, _line: any("hand-over" in argv[-1] for _program, argv, *_ in unit["ExecStartPre"]),
        "a guest that is to get its key from the host gets none, and cannot open what is sealed for it",
        Severity.HINT,
        of_launcher=True,
    ),
    Setting(
        "vm.runtime-directory.mode",
        "Service",
        "RuntimeDirectoryMode=0755",
        lambda unit, _line: unit["RuntimeDirectoryMode"] & 0o005 == 0o005,  # noqa: PLR2004 (r-x for others)
        "an agent that is not root cannot read the launcher's report and waits for it in vain",
        Severity.HINT,
        restart=True,
        of_launcher=True,
    ),
    Setting(
        "vm.restart-prevention",
        "Service",
        f"RestartPreventExitStatus={' '.join(map(str, REFUSALS))} SIGUSR2",
        _prevents,
        "systemd retries a start that the launcher has refused every few seconds, for ever",
        of_launcher=True,
    ),
    Setting(
        "vm.start-limit",
        "Unit",
        "StartLimitIntervalSec=0",
        lambda unit, _line: unit["StartLimitIntervalUSec"] == 0,
        "systemd takes a few rotations in a row for a crash loop, and leaves the VM down",
    ),
    Setting(
        "vm.restart",
        "Service",
        "Restart=always",
        lambda unit, _line: unit["Restart"] == "always",
        "a guest's reboot ends the VM, so that it starts with fresh secrets; without this it stays down",
        of_launcher=True,
    ),
    Setting(
        "vm.order",
        "Unit",
        f"After={SEAL}",
        lambda unit, _line: SEAL in unit["After"],
        "a VM that starts with the host may start with old secrets, and is then restarted at once",
        Severity.HINT,
    ),
    Setting(
        "vm.first",
        "Unit",
        f"Wants={_FIRST}",
        lambda unit, line: line.partition("=")[2] in unit["Wants"],
        _BEFORE_FIRST,
        Severity.HINT,
    ),
    Setting(
        "vm.first.order",
        "Unit",
        f"After={_FIRST}",
        lambda unit, line: line.partition("=")[2] in unit["After"],
        _BEFORE_FIRST,
        Severity.HINT,
    ),
    Setting(
        "vm.mounts",
        "Service",
        "PrivateMounts=yes",
        lambda unit, _line: bool(unit["PrivateMounts"]),
        "the VM's user can read the credentials of this user's other units in /run/credentials",
        Severity.HINT,
        restart=True,
        of_launcher=True,
    ),
    Setting(
        "vm.proc",
        "Service",
        "ProtectProc=invisible",
        lambda unit, _line: unit["ProtectProc"] == "invisible",
        "the VM's user can see other users' processes",
        Severity.HINT,
        restart=True,
        of_launcher=True,
    ),
    Setting(
        "vm.core",
        "Service",
        "LimitCORE=0",
        lambda unit, _line: unit["LimitCORE"] == 0,
        "a core dump of the hypervisor would contain its guest's memory and secrets",
        Severity.HINT,
        restart=True,
        of_launcher=True,
    ),
)
"""The drop-in's settings, and `vm.restart`, which VMs' units already have."""


_REMOVAL: Final = Setting(
    "vm.evidence.removal",
    "Service",
    f"ExecStopPost=-+/usr/bin/rm -f {_EVIDENCE}",
    _names_evidence,
    _PILES_UP,
    Severity.HINT,
)
"""Of a unit without a launcher. It has no guest whose key would have to go as well."""


def settings_of(vm: VmConfig) -> tuple[Setting, ...]:
    """The settings that a VM's unit needs."""
    if vm.channel is not Channel.DIRECTORY:
        return SETTINGS
    return (*(setting for setting in SETTINGS if not setting.of_launcher), _REMOVAL)


def lines_for(vm: VmConfig, store: Path) -> list[str]:
    """The lines of credferry-vm.conf for a VM, or of credferry-unit.conf if it has no launcher."""
    lines = []
    for section in ("Unit", "Service"):
        lines.append(f"[{section}]")
        lines += [
            setting.line.format(vm=vm.name, store=store)
            for setting in settings_of(vm)
            if setting.section == section and setting.check != "vm.restart"
        ]
    return lines
