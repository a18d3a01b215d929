# SPDX-License-Identifier: MIT
"""What must hold in the model world: at every moment, and once all faults have ceased."""

from __future__ import annotations

from typing import TYPE_CHECKING

from credferry.agent.config.model import Policy
from credferry.agent.store.records import Outcome
from tests.support.world.guest import FAILING
from tests.support.world.machine import VMS

if TYPE_CHECKING:
    from tests.support.world.machine import Machine
    from tests.support.world.systemd import ModelVm

_WAITS = (0.0, 2.0, 6.0, 6.0, 30.0, 4000.0, 6.0, 6.0, 30.0, 4000.0, 6.0, 6.0)
"""How much time passes before each turn while the host settles: retries and rates take theirs."""


def check_steady(host: Machine) -> None:
    """What holds at every moment."""
    for vm in host.systemd.vms.values():
        assert vm.asked <= host.allowed[vm.name], f"{vm.name} is restarted without need"
    if host.service is None:
        return
    for name in VMS:
        attempt, current = host.store.attempt(name), host.store.current(name)
        if current is not None:
            run = host.numbers.setdefault((name, current.generation), current.run)
            assert run == current.run, f"{name}: the number {current.generation} is used again"
        if attempt is not None and attempt.outcome is Outcome.ROLLED_BACK and attempt.previous:
            is_back = current is None or current.generation == attempt.previous
            is_back = is_back or host.systemd.vms[name].is_lost
            assert is_back or current is None or current.digest != attempt.digest, (
                f"{name}: what failed is current again"
            )


def check_settled(host: Machine) -> None:
    """Once all faults cease, every VM ends on exactly the published values, and then rests."""
    host.mend()
    for seconds in _WAITS:
        host.clock.pass_time(seconds)
        host.turn()
    assert host.service is not None, "the agent does not start again"
    before = {vm.name: vm.invocation for vm in host.systemd.vms.values()}
    host.turn()
    after = {vm.name: vm.invocation for vm in host.systemd.vms.values()}
    assert after == before, "the agent does not rest"
    for name in host.service._session.config.vms:
        _check_vm(host, host.systemd.vms[name])
    if not host.journal.is_gappy:
        key = host.key()
        assert key is not None
        findings = host.journal.findings(host.top / "state", key)
        assert not findings, f"the audit's chain does not hold: {findings}"
    check_steady(host)


def _check_vm(host: Machine, vm: ModelVm) -> None:
    assert not (vm.is_up and vm.is_out_of_service), f"{vm.name} is left out of service"
    if vm.is_down_by_agent and not vm.is_up and (vm.is_lost or _is_way_back_closed(host, vm)):
        return
    assert not vm.is_down_by_agent or vm.is_up, (
        f"{vm.name} was taken down and left there: {host.store.attempt(vm.name)}"
    )
    wanted = host.wanted(vm.name)
    if wanted is None or not vm.is_up or _is_spared(host, vm):
        return
    values = set(wanted.values())
    is_blamed = host.blamed.get(vm.name) == wanted
    if is_blamed or values & FAILING or (vm.name == "c" and b"sick" in values):
        # Nobody can open what it ran last, where the key of that is gone.
        assert vm.is_lost or vm.values in (vm.good, vm.good_before, vm.by_hand, wanted), (
            f"{vm.name} does not run what it last ran well"
        )
    else:
        assert vm.values == wanted, f"{vm.name} does not run what is published"
        attempt = host.store.attempt(vm.name)
        is_begun = attempt is not None and attempt.outcome is Outcome.RESTARTING
        assert not is_begun, f"{vm.name} rests, and others wait for its end: {attempt}"


def _is_way_back_closed(host: Machine, vm: ModelVm) -> bool:
    """Whether systemd did not start the VM on what it ran before, where the agent had one attempt."""
    attempt = host.store.attempt(vm.name)
    if attempt is None or attempt.outcome is not Outcome.ROLLED_BACK:
        return False
    return vm.last_result != "done" and host.settings.attempts == 1


def _is_spared(host: Machine, vm: ModelVm) -> bool:
    """Whether an operator, its policy, a hint of its own or another VM's failure holds the VM back."""
    attempt = host.store.attempt(vm.name)
    return (
        host.store.is_held(vm.name)
        or host.policy(vm.name) is not Policy.RESTART
        or host.forged.get(vm.name) == vm.invocation_id
        or vm.name in host.blind
        or (attempt is not None and (attempt.outcome is Outcome.HALTED or attempt.by_operator))
        or (attempt is not None and attempt.outcome is Outcome.UNPUSHED and _is_left_so(host, vm))
    )


def _is_left_so(host: Machine, vm: ModelVm) -> bool:
    """Whether a VM that takes no push is left with what it has."""
    return vm.name in host.settings.live and host.settings.on_live_failure == "hold"
