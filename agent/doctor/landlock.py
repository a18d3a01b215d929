# SPDX-License-Identifier: MIT
"""``--landlock`` in the api channel, which confines less there than on cloud-hypervisor's command line."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from credferry.agent.doctor import launcher
from credferry.agent.doctor.finding import hint
from credferry.launcher.handoff import Channel

if TYPE_CHECKING:
    from collections.abc import Iterator

    from credferry.agent.config.model import VmConfig
    from credferry.agent.doctor.chain import Chain
    from credferry.agent.doctor.finding import Finding

_OPTION: Final = re.compile(r"(?:^|(?<=[\s\"',\[]))--landlock(?=$|[\s\"',\]])", re.MULTILINE)


def check(chain: Chain, vm: VmConfig) -> Iterator[Finding]:
    """Whether the VM is less confined than its command line says."""
    unit = chain.unit(vm)
    if vm.channel is not Channel.API or unit["LoadState"] != "loaded":
        return
    found = launcher.wiring(unit)
    if found.wired and _OPTION.search(found.text):
        yield hint(
            "vm.landlock",
            f"{found.file} uses --landlock, which confines less in the api channel",
            vm=vm.name,
            why="Landlock confines the threads that run the VM, but not cloud-hypervisor's API "
            "server, event monitor and main thread",
            remedy='seal the values for the guest and set channel = "command", where Landlock '
            "confines the whole process; or confine the VM's unit, for example with "
            "ProtectSystem=strict",
        )
