# SPDX-License-Identifier: MIT
"""Several hosts of the model world, with one etcd: hosts die, requests are lost or late, members go away.

Each host is a `Machine` with the real `Service`, and asks with the real engine. One thread moves all of
them, so another host can do a turn in the midst of a restart.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from credferry.agent.fleet import keys
from credferry.agent.fleet.cluster import Known
from credferry.agent.fleet.model import Applied, Holder, Limit, OfHost, Slot, UnreadableSlot
from credferry.agent.rollout.slot_need import has_failed
from tests.support.world.clock import ModelClock
from tests.support.world.etcd import ModelEtcd, ModelMember, model_engine
from tests.support.world.invariants import check_steady
from tests.support.world.machine import Machine, Settings, new_top

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.support.world.systemd import ModelVm

GROUP: Final = "web"
HOSTS: Final = ("h0", "h1", "h2")
MEMBERS: Final = 3
_WAITS: Final = (0.0, 2.0, 6.0, 20.0, 70.0, 70.0)
_ROUNDS: Final = 12
"""How often all hosts get time and turns until the fleet must be settled."""


@dataclass
class WatchedEtcd(ModelEtcd):
    """An etcd that is not written against the contract: no slot beyond the limit, none while halted."""

    resumed: set[Holder] = field(default_factory=set)
    """For whom an operator has ended the halt, which was not told anew since."""

    def put(self, key: bytes, value: bytes) -> None:
        """See `ModelEtcd`."""
        is_new = key not in self.pairs
        super().put(key, value)
        if key == keys.halt_key(GROUP).encode():
            self.resumed -= {self._halter()}
        if is_new and key.startswith(keys.slots(GROUP).encode()):
            group = self.group(GROUP)
            assert isinstance(group.limit, Limit)
            assert len(group.held) <= group.limit.number, "more slots are held than the limit"
            assert group.halt is None, "a slot is taken in a halted group"

    def resume(self) -> None:
        """An operator ends the halt, whoever has halted the group."""
        self.resumed.add(self._halter())
        assert isinstance(model_engine(ModelMember(self)).resume(GROUP), Applied)

    def _halter(self) -> Holder:
        halt = self.group(GROUP).halt
        return halt.holder if halt is not None and halt.holder is not None else Holder("", "", "")


@dataclass(slots=True)
class Host:
    """One host of the fleet, and how it reaches etcd."""

    name: str
    machine: Machine
    members: list[ModelMember]
    fates: deque[str] = field(default_factory=deque)
    """What becomes of its next requests."""
    is_cut: bool = False
    is_gone: bool = False
    """Whether it died for good."""


@dataclass(slots=True)
class FleetWorld:
    """The hosts, and what must hold of them together."""

    etcd: WatchedEtcd = field(default_factory=WatchedEtcd)
    clock: ModelClock = field(default_factory=ModelClock)
    hosts: dict[str, Host] = field(default_factory=dict)
    down: set[str] = field(default_factory=set)
    """Members of etcd that do not answer."""
    active: Machine | None = None
    taken: set[tuple[str, str]] = field(default_factory=set)
    """VMs that were up when an agent began with them, and are down since."""
    most: int = 0
    """How many VMs were taken down at most at a time."""

    def add(self, name: str, settings: Settings) -> None:
        """A host on which every VM runs what is published."""
        members = [ModelMember(self.etcd, f"http://m{number}") for number in range(MEMBERS)]
        fleet = f'[fleet]\nendpoints = ["http://127.0.0.1:2379"]\ngroup = "{GROUP}"\nhost = "{name}"\n'
        machine = FleetMachine(
            new_top(),
            self.clock,
            settings,
            fleet=fleet,
            engine=lambda _config, record: model_engine(*members, pick=min, known=Known(record)),
            world=self,
            name=name,
        )
        self.hosts[name] = host = Host(name, machine, members)
        for member in members:
            member.fate = self._fate(host, member)

    def close(self) -> None:
        """Remove all, in the order in which the clocks and files were put in place."""
        for host in reversed(self.hosts.values()):
            host.machine.close()

    def turn(self, name: str, machine: Callable[[Machine], None] = Machine.turn) -> None:
        """Have a host do something; without another thing, its agent makes a turn."""
        before, self.active = self.active, self.hosts[name].machine
        try:
            machine(self.active)
        finally:
            self.active = before
        self.check()

    @property
    def alive(self) -> list[Host]:
        """The hosts that are there."""
        return [host for host in self.hosts.values() if not host.is_gone]

    def publish(self, names: tuple[str, ...], secrets: Mapping[str, str]) -> None:
        """The same secrets arrive on some hosts."""
        for host in self.alive:
            if host.name in names:
                host.machine.publish(secrets)

    def die(self, name: str) -> None:
        """A host is gone for good. Its agent may be at any step."""
        if len(self.alive) > 1:
            host = self.hosts[name]
            host.machine.stop_agent()
            host.is_gone = True
            self.taken = {each for each in self.taken if each[0] != name}

    def reboot(self, name: str) -> None:
        """A host loses its power, and its VMs start at its boot on what is sealed."""
        machine = self.hosts[name].machine
        machine.stop_agent()
        for vm in machine.systemd.vms.values():
            machine.systemd.start_vm(vm)
            vm.by_hand = vm.values if vm.is_up else vm.by_hand
            self.taken.discard((name, vm.name))

    def limit(self, number: int) -> None:
        """An operator sets the limit."""
        model_engine(ModelMember(self.etcd)).limit(GROUP, number)

    def halt(self) -> None:
        """An operator halts the group."""
        model_engine(ModelMember(self.etcd)).halt(GROUP, Holder("desk", "", "0" * 32), "r", "by hand")

    def resume(self) -> None:
        """An operator ends the halt."""
        self.etcd.resume()

    def arrive(self) -> None:
        """All requests that were late arrive now, from whichever host."""
        for host in self.hosts.values():
            for member in host.members:
                member.arrive()

    def began(self, name: str, vm: ModelVm) -> None:
        """An agent begins with a VM: it has a slot, unless the VM is down already."""
        if vm.is_up:
            assert (name, vm.name) in self.holders(), f"{vm.name} on {name} is worked on without a slot"
            self.taken.add((name, vm.name))
            self.most = max(self.most, len(self.taken))

    def holders(self) -> set[tuple[str, str]]:
        """Hosts and VMs with a slot."""
        held: tuple[Slot | UnreadableSlot, ...] = self.etcd.group(GROUP).held
        return {(each.holder.host, each.holder.vm) for each in held if isinstance(each, Slot)}

    def check(self) -> None:
        """What holds at every moment: who was taken down has a slot."""
        for name, vm in list(self.taken):
            if self.hosts[name].machine.systemd.vms[vm].is_up or self._is_stopped(name, vm):
                self.taken.discard((name, vm))
        lacking = self.taken - self.holders() if self.taken else set()
        assert not lacking, f"these VMs are down by their agents, and have no slot: {lacking}"
        for host in self.alive:
            self._check_halts(host)

    def _check_halts(self, host: Host) -> None:
        """While a VM that failed is not well, its halt is there, unless an operator has ended it."""
        if host.machine.service is None:
            return
        store = host.machine.store
        for name in store.claimed():
            claim, attempt = store.claim(name), store.attempt(name)
            if claim is not None and claim.is_told and has_failed(attempt, claim):
                halt = self.etcd.group(GROUP).halt
                halter = None if halt is None or halt.holder is None else (halt.holder.host, halt.holder.vm)
                resumed = {(each.host, each.vm) for each in self.etcd.resumed}
                assert (host.name, name) in {halter, *resumed}, f"{name} on {host.name} halts nobody"

    def check_hosts(self) -> None:
        """What holds on each host for itself."""
        for host in self.alive:
            check_steady(host.machine)

    def settle(self) -> None:
        """All faults cease, a good value is published, and an operator cleans up after hosts that died."""
        self.down.clear()
        self.arrive()
        operator = model_engine(ModelMember(self.etcd))
        for host in self.hosts.values():
            host.is_cut = False
            host.fates.clear()
            if host.is_gone:
                assert isinstance(operator.free(GROUP, OfHost(host.name)), Applied)
        good = {"x": "good", "y": "good", "z": "good"}
        for host in self.alive:
            host.machine.mend()
            host.machine.publish(good)
        for seconds in _WAITS * _ROUNDS:
            busy = [host for host in self.alive if not self._is_settled(host)]
            if not busy and self._is_free():
                break
            if self._is_orphaned():
                self.etcd.resume()
            self.clock.pass_time(seconds)
            for host in busy or self.alive:
                self.turn(host.name)
        for host in self.alive:
            self.turn(host.name)
            self._check_settled(host)
        group = self.etcd.group(GROUP)
        assert not group.held, "a slot is left"
        assert group.halt is None, "a halt is left"

    def _check_settled(self, host: Host) -> None:
        machine = host.machine
        assert machine.service is not None, "the agent does not start again"
        for name in machine.service._session.config.vms:
            vm = machine.systemd.vms[name]
            assert machine.store.claim(name) is None, f"a claim of {name} is left on {host.name}"
            if vm.is_stopped_by_hand or (not vm.is_up and not vm.is_down_by_agent):
                continue
            assert vm.values == machine.wanted(name), f"{name} on {host.name} does not run what is published"
            assert vm.is_up, f"{name} on {host.name} was taken down and left there"

    def _is_settled(self, host: Host) -> bool:
        try:
            self._check_settled(host)
        except AssertionError:
            return False
        return True

    def _is_free(self) -> bool:
        group = self.etcd.group(GROUP)
        return not group.held and group.halt is None

    def _is_orphaned(self) -> bool:
        """Whether the group is halted for nobody who can get well: a desk, a dead host, a stopped VM."""
        halt = self.etcd.group(GROUP).halt
        if halt is None:
            return False
        host = self.hosts.get(halt.holder.host) if halt.holder is not None else None
        if host is None or host.is_gone or halt.holder is None:
            return True
        vm = host.machine.systemd.vms[halt.holder.vm]
        return not vm.is_up and not vm.is_down_by_agent

    def _is_stopped(self, name: str, vm: str) -> bool:
        model = self.hosts[name].machine.systemd.vms[vm]
        return model.is_stopped_by_hand or not model.is_down_by_agent

    def _fate(self, host: Host, member: ModelMember) -> Callable[[], str]:
        def fate() -> str:
            Machine._effect(host.machine)
            if host.is_cut or member.url in self.down or len(self.down) * 2 > MEMBERS:
                return "lost"
            return host.fates.popleft() if host.fates else ""

        return fate


@dataclass(slots=True)
class FleetMachine(Machine):
    """A host of a fleet. Files that are synced count for the host that works."""

    world: FleetWorld = field(kw_only=True)
    name: str = field(kw_only=True)

    def _fsync(self, descriptor: int) -> None:
        Machine._fsync(self.world.active or self, descriptor)

    def _before_restart(self, vm: ModelVm) -> None:
        Machine._before_restart(self, vm)
        self.world.began(self.name, vm)

    def _before_push(self, vm: ModelVm, values: Mapping[str, bytes]) -> None:
        Machine._before_push(self, vm, values)
        self.world.began(self.name, vm)
