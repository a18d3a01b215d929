# SPDX-License-Identifier: MIT
"""What the host does to secrets and the audit: processor, journal and swap.

Advice that concerns every host, such as to set the clock, does not belong here.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from credferry.agent.doctor import probe, unit_files
from credferry.agent.doctor.finding import hint, ok, problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from credferry.agent.doctor.chain import Chain
    from credferry.agent.doctor.finding import Finding

_JOURNALD: Final = "/etc/systemd/journald.conf.d/zz-credferry.conf"


def check(_chain: Chain) -> Iterator[Finding]:
    """Whether guests on this host can have SMBIOS strings."""
    machine = os.uname().machine
    if machine == "x86_64":
        yield ok("host.machine", "x86_64: cloud-hypervisor makes SMBIOS tables")
    else:
        yield problem(
            "host.machine",
            f"this host is {machine}",
            why="cloud-hypervisor makes SMBIOS tables on x86_64 only: guests get no OEM strings",
            remedy="run these VMs on x86_64",
        )


def check_journal(_chain: Chain) -> Iterator[Finding]:
    """Whether the journal, and so the audit in it, is kept, also across a reboot."""
    storage = "auto"
    for line in probe.quiet_lines("systemd-analyze", "cat-config", "systemd/journald.conf"):
        if found := re.match(r"\s*Storage\s*=\s*(\w*)", line):
            storage = found[1] or "auto"
    keep = (
        ()
        if probe.is_nixos()
        else (
            *unit_files.write(_JOURNALD, ["[Journal]", "Storage=persistent"]),
            "systemctl restart systemd-journald.service",
            "journalctl --flush",
        )
    )
    remedy = 'set services.journald.storage = "persistent"' if probe.is_nixos() else "set Storage=persistent"
    if storage == "none":
        yield problem(
            "host.journal",
            "journald stores nothing: Storage=none",
            why="there is no audit, and the agent's chain of records appears broken",
            remedy=remedy,
            commands=keep,
        )
    elif storage == "volatile" or (storage == "auto" and not Path("/var/log/journal").is_dir()):
        yield hint(
            "host.journal",
            f"a reboot deletes the journal: Storage={storage}",
            why="the audit is lost with it, and the lost records appear as a gap",
            remedy=remedy,
            commands=keep,
        )
    else:
        yield ok("host.journal", f"the journal, and so the audit, is kept across reboots: Storage={storage}")


def check_swap(_chain: Chain) -> Iterator[Finding]:
    """Whether memory can be swapped to a disk unencrypted."""
    lines = (probe.text_of(Path("/proc/swaps")) or "").splitlines()[1:]
    plain = [name for name in (line.split()[0] for line in lines) if not _is_safe(Path(name))]
    how = "swapDevices.*.randomEncryption.enable = true" if probe.is_nixos() else "crypttab: swap"
    if plain:
        yield hint(
            "host.swap",
            f"unencrypted swap: {', '.join(plain)}",
            why="a hypervisor's memory can be swapped out with its guest's secrets; the agent and PID "
            "1 keep theirs out of swap",
            remedy=f"encrypt the swap ({how}), or set MemorySwapMax=0 in the VMs' units",
        )
    else:
        yield ok("host.swap", "no unencrypted swap")


def _is_safe(device: Path) -> bool:
    name = device.resolve().name
    if name.startswith("zram"):
        return True
    uuid = probe.text_of(Path(f"/sys/class/block/{name}/dm/uuid")) or ""
    return uuid.startswith("CRYPT-")
