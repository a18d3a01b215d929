# SPDX-License-Identifier: MIT
"""Asks the launchers about many VMs at once. The checks of each VM then find the answers."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from credferry.agent.doctor import arguments, hypervisor, questions
from credferry.launcher.handoff import Channel

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from credferry.agent.config.model import VmConfig


def ask_launchers(vms: Sequence[VmConfig], unit_of: Callable[[VmConfig], Mapping[str, Any]]) -> None:
    """Ask the launchers of these VMs. A VM for which this fails is left to its own check, which says why."""
    # The hypervisors first: a question about arguments names the hypervisor's version.
    for question in (hypervisor.question_of_version, arguments.question_of_arguments):
        asked = []
        for vm in vms:
            with suppress(Exception):
                unit = unit_of(vm)
                if vm.channel is not Channel.DIRECTORY and unit["LoadState"] == "loaded":
                    found = question(vm, unit)
                    asked += [found] if found is not None else []
        questions.ask_all(asked)
