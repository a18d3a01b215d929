# SPDX-License-Identifier: MIT
"""Whether systemd could start a unit that the agent starts for a VM."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from credferry.agent.doctor import unit_files
from credferry.agent.doctor.finding import problem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from credferry.agent.config.model import VmConfig
    from credferry.agent.doctor.finding import Finding


def not_loaded(
    check: str, vm: VmConfig, name: str, unit: Mapping[str, Any], *, why: str, install: str
) -> Finding | None:
    """The finding about a unit that is masked or missing; None if systemd has loaded it.

    ``install`` is the remedy for a missing unit.
    """
    state = unit["LoadState"]
    if state == "loaded":
        return None
    is_masked = state == "masked"
    return problem(
        check,
        f"{name}: {state}",
        vm=vm.name,
        why=why,
        remedy="unmask it" if is_masked else install,
        commands=unit_files.unmask(name) if is_masked else (),
    )
