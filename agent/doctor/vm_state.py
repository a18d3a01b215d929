# SPDX-License-Identifier: MIT
"""The state of a VM as the agent computes it, and whether the VM's unit stays up."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Final

from credferry.agent.doctor.finding import hint, ok, problem
from credferry.agent.reconcile.decision import State
from credferry.agent.systemd.units import HEALTH_UNIT, PUSH_UNIT
from credferry.launcher.errors import REFUSALS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from credferry.agent.config.model import VmConfig
    from credferry.agent.doctor.chain import Chain
    from credferry.agent.doctor.finding import Finding

_LOOP_MIN: Final = 3
_SETTLED_SECONDS: Final = 60.0


def check(chain: Chain, vm: VmConfig) -> Iterator[Finding]:
    """Whether the VM runs what is published; if not, the reasons."""
    yield from _unit(chain, vm)
    observed, decision = chain.seen(vm)
    reasons = "; ".join(decision.reasons)
    said = f"{vm.name} is {decision.state.value}" + (f": {reasons}" if reasons else "")
    config = shlex.quote(str(chain.file))
    if observed.held:
        yield hint(
            "vm.held",
            f"an operator holds {vm.name}",
            vm=vm.name,
            why="rotations reach it only when it next starts",
            remedy="release it when the hold is no longer needed",
            commands=[f"credferry release --config {config} {vm.name}"],
        )
    match decision.state:
        case State.REFUSED:
            yield problem(
                "vm.state",
                said,
                vm=vm.name,
                why="the VM keeps its previous secrets, and rotations do not reach it",
                remedy="do what each reason says",
            )
        case State.FAILED | State.HALTED:
            yield problem(
                "vm.state",
                said,
                vm=vm.name,
                why="the agent does not try the published values again without an order",
                remedy=f"see journalctl -u {_failed_unit(vm, reasons)} and correct the cause; then retry, "
                "or publish another value",
                commands=[f"credferry retry --config {config} {vm.name}"],
            )
        case State.ROLLED_BACK:
            yield hint(
                "vm.state",
                said,
                vm=vm.name,
                why="an operator ordered this; the VM does not get what is published now",
                remedy="retry when the published values are good; the next change is tried in any case",
                commands=[f"credferry retry --config {config} {vm.name}"],
            )
        case State.APPROVAL:
            yield hint("vm.state", said, vm=vm.name, remedy="approve it, or publish other values")
        case State.RESTART_DUE | State.PUSH_DUE | State.SEAL_DUE:
            yield hint(
                "vm.state",
                said,
                vm=vm.name,
                remedy="the agent does this within seconds; run doctor again, or see the findings "
                "about the agent",
            )
        case State.NO_UNIT | State.HELD:
            pass  # findings of their own
        case _:
            yield ok("vm.state", said, vm.name)


def _failed_unit(vm: VmConfig, reasons: str) -> str:
    """The unit whose journal tells about a failure."""
    helpers = (each.format(vm=vm.name) for each in (HEALTH_UNIT, PUSH_UNIT))
    return next((each for each in helpers if each in reasons), vm.unit)


def _unit(chain: Chain, vm: VmConfig) -> Iterator[Finding]:
    unit = chain.unit(vm)
    if unit["LoadState"] != "loaded":
        return
    observed, _ = chain.seen(vm)
    is_young = observed.unit is None or observed.unit.active_seconds < _SETTLED_SECONDS
    status = unit.get("ExecMainStatus", 0)
    said = f"its main process ended with status {status}"
    if unit["ActiveState"] == "failed":
        by = ", because the launcher refused the start" if status in REFUSALS else ""
        yield problem(
            "vm.failed",
            f"{vm.unit} has failed: {said}{by}",
            vm=vm.name,
            why="the VM is down, and stays down",
            remedy=f"see journalctl -u {vm.unit} and correct the cause; then start it",
            commands=[
                f"systemctl reset-failed {shlex.quote(vm.unit)}",
                f"systemctl start {shlex.quote(vm.unit)}",
            ],
        )
    elif unit.get("NRestarts", 0) >= _LOOP_MIN and is_young:
        yield problem(
            "vm.loop",
            f"{vm.unit} starts again and again: {unit['NRestarts']} times, {said}",
            vm=vm.name,
            why="Restart=always starts it again whatever the cause",
            remedy=f"see journalctl -u {vm.unit}; until the cause is corrected, stop it: systemctl "
            f"stop {vm.unit}",
        )
