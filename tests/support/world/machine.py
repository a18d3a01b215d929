# SPDX-License-Identifier: MIT
"""The host of the model world: source, key, configuration, disk, journal, and the agent that runs there."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import shutil
import stat
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import structlog

from credferry.agent.audit.events import Event, Order
from credferry.agent.config.model import Policy
from credferry.agent.daemon.cycle import Turn
from credferry.agent.daemon.parts import Parts
from credferry.agent.daemon.service import Service
from credferry.agent.errors import BusError, CredferryError, KeyFileError, SealError, StoreError
from credferry.agent.rollout import nixos
from credferry.agent.rollout.operators import Operator
from credferry.agent.sealing.keys import create_key, read_host_key
from credferry.agent.store.generations import Store
from credferry.agent.store.records import Outcome
from credferry.launcher.errors import Exit
from credferry.launcher.handoff import OEM_TOTAL_MAX, PUSH_MANIFEST, Channel, Stamp, stamp_path
from tests.support.world.clock import ModelClock, ModelStop
from tests.support.world.journald import ModelJournal, ModelSender
from tests.support.world.process import CrashError, ModelDispatcher, ModelThread, ModelWatch
from tests.support.world.second_source import PAIRS, TABLES, SecondSource
from tests.support.world.systemd import ModelSystemd, ModelVm

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from credferry.agent.config.fleet import FleetConfig
    from credferry.agent.fleet.cluster import ClusterRecord
    from credferry.agent.fleet.model import Engine
    from credferry.agent.sealing.keys import CredentialKey
    from credferry.launcher.handoff import Manifest

VMS = ("a", "b", "c")
USES = {
    "a": [("X", "x", True), ("Y", "y", False)],
    "b": [("X", "x", True)],
    "c": [("Z", "z", True)],
}
"""What the tables below say of the default source: credential, secret, whether it is required."""
_TABLES = {
    "a": 'X = { secret = "x" }\nY = { secret = "y", required = false }\n',
    "b": 'X = { secret = "x" }\nT = { text = "t" }\n',
    "c": 'Z = { secret = "z" }\n',
}
MACHINE_ID = "5ea1ed00c0ffee00c0ffee00c0ffee00"
_SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True, slots=True)
class Settings:
    """What the configuration says of VMs and rollouts."""

    vms: tuple[str, ...] = VMS
    policy: str = "restart"
    """Of VM ``a``."""
    restarts_per_hour: int = 0
    """Of VM ``b``."""
    quiet_seconds: int = 0
    """Of VM ``c``."""
    attempts: int = 2
    pause_seconds: int = 0
    units: str = ""
    """Around restarts of VM ``b``."""
    is_canary: bool = False
    """Whether VM ``a`` goes first."""
    live: tuple[str, ...] = ()
    on_live_failure: str = "restart"
    has_other: bool = True
    """Whether VMs take something of the second source as well."""


@dataclass(slots=True)
class Machine:
    """``interruption`` is done once so many more effects have been seen; it can raise."""

    top: Path
    clock: ModelClock = field(default_factory=ModelClock)
    settings: Settings = field(default_factory=Settings)
    fleet: str = ""
    """The table ``[fleet]`` of its configuration, if it has one."""
    engine: Callable[[FleetConfig, ClusterRecord], Engine] | None = None
    service: Service | None = None
    _turned: Turn = field(default_factory=Turn)
    secrets: dict[str, str] | None = None
    full: str = ""
    """What the disk has no room for: ``files``, ``directories``, or both; empty for nothing."""
    interruption: tuple[int, Callable[[], None]] | None = None
    is_racing: bool = False
    """Whether something happens while the agent works, so that what it saw may be of the past."""
    blind: set[str] = field(default_factory=set)
    """VMs of which nobody can know what they run: the agent died before it saw the host's new key."""
    allowed: dict[str, int] = field(default_factory=lambda: dict.fromkeys(VMS, 0))
    """How often the agent may have asked for a restart by now."""
    ordered: set[str] = field(default_factory=set)
    """VMs with an order since their last start."""
    rolled_back: set[str] = field(default_factory=set)
    """VMs with an ordered rollback, which a start by hand does not carry out."""
    forged: dict[str, str] = field(default_factory=dict)
    """The invocation for which a VM's user has forged a lack of room."""
    worked: dict[str, float] = field(default_factory=dict)
    """When the agent last asked for a restart or a push of a VM."""
    blamed: dict[str, dict[str, bytes] | None] = field(default_factory=dict)
    """What a VM should have got when a job of its unit failed, whatever it was to start with."""
    numbers: dict[tuple[str, int], str] = field(default_factory=dict)
    """By VM and number: the run of the change that was sealed under it."""
    other: SecondSource = field(init=False)
    systemd: ModelSystemd = field(init=False)
    journal: ModelJournal = field(init=False)
    _thread: ModelThread = field(default_factory=ModelThread)
    _is_dead: bool = False
    _is_key_new: bool = False
    _number: int = 0
    _wanted_before: dict[str, dict[str, bytes] | None] = field(default_factory=lambda: dict.fromkeys(VMS))
    _switch: int | None = None
    _patches: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Set the host up, with every VM running what is published."""
        vms = {name: ModelVm(name) for name in VMS}
        self.systemd = ModelSystemd(
            vms,
            self.clock,
            self.top / "run",
            self._opened,
            self._sealed,
            self._effect,
            self._before_restart,
            self._before_push,
            self._after_push,
            self._after_restart,
            lambda: self.is_racing or bool(self.full),
        )
        self.journal = ModelJournal(self._effect, self._told)
        (self.top / "run").mkdir()
        (self.top / "key").mkdir()
        (self.top / "machine-id").write_text(MACHINE_ID)
        self.other = SecondSource(self.top / "other")
        (self.top / "switch").touch()
        self._list_locks()
        create_key(self._key_file, machine_id=MACHINE_ID)
        self.configure(self.settings)
        self._patches = [
            patch("os.fsync", self._fsync),
            patch("time.sleep", self.clock.pass_time),
            # As the kernel's own list was when it last changed: to read that takes a millisecond each time.
            patch(
                "credferry.agent.rollout.nixos.holder", partial(nixos.holder, lists=(self.top / "locks",))
            ),
        ]
        for each in self._patches:
            each.start()
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
        self.other.publish("1", 0, 0, 0)
        self.publish({"x": "1", "y": "1", "z": "1"})
        self.turn()
        for vm in self.systemd.vms.values():
            self.systemd.start_vm(vm)
            vm.good = vm.values
        self.turn()

    @classmethod
    def made(cls, settings: Settings | None = None) -> Machine:
        """A host in a directory of its own, in memory where there is such."""
        return cls(new_top(), settings=settings or Settings())

    def close(self) -> None:
        """Remove all."""
        for each in self._patches:
            each.stop()
        structlog.reset_defaults()
        self.end_switch()
        shutil.rmtree(self.top)

    # The agent.

    def turn(self) -> None:
        """Have the agent make a turn, and the restarts that follow; it is started where it does not run."""
        try:
            if self.service is None:
                self._start()
            if self.service is not None:
                self._turned = self.service._turn(self._turned)
                while not self._is_dead and (self._dispatcher.work_on_one() or self._thread.work_on_one()):
                    pass
        except CrashError:
            pass
        if self._is_dead:
            self._bury()
        elif self._is_key_new:
            if self.service is not None:  # what the configuration does not have is not carried over
                self._lose(set(VMS) - self.service._session.config.vms.keys())
            self._is_key_new = not self._is_carried_over()

    def die(self) -> None:
        """The agent's process is gone. To be called as an interruption."""
        self._is_dead = True
        raise CrashError

    def stop_agent(self) -> None:
        """The agent ends between two turns."""
        if self.service is not None:
            self._bury()

    def reload(self) -> None:
        """The agent reads its configuration again: between turns, or while a restart is under way."""
        if self.service is not None:
            self.service._reload()

    def glance(self) -> None:
        """The loop makes a turn while a restart is under way."""
        if self.service is not None:
            self._turned = self.service._turn(self._turned)

    def order(self, vm: str, order: Order) -> None:
        """An operator gives an order."""
        if self.service is None:
            return
        before = self.store.attempt(vm)
        with suppress(CredferryError):
            # What is ordered may be half done where it fails.
            self.ordered.add(vm)
            if order is Order.ROLL_BACK:
                self.rolled_back.add(vm)
            if order is not Order.HOLD:
                self.allowed[vm] += 1
            self.service._orders.give(vm, order, Operator(0))
        if order is Order.RETRY and before is not None and before.outcome is not Outcome.HALTED:
            for other in VMS:  # those that were halted for its sake are free again
                self.allowed[other] += 1

    def when_free(self, do: Callable[[], None], *, in_restart: bool) -> Callable[[], None]:
        """The same, done at the first effect at which no lock is in its way: another thread would wait."""

        def once_free() -> None:
            locks = ("seal.lock", "audit.lock")
            is_free = not in_restart or bool(self._dispatcher._busy)
            for name in locks:
                with self.store.lock(name, wait=False) as had:
                    is_free = is_free and had
            if is_free:
                do()
            else:
                self.interruption = 0, once_free

        return once_free

    def interrupted_turn(self, effects: int, do: Callable[[], None]) -> None:
        """A turn in the midst of which something happens."""
        self.interruption = effects, do
        self.is_racing = True
        self.turn()
        self.interruption = None
        self.is_racing = False
        for vm in self.systemd.vms.values():
            vm.guest.is_noted = False

    @property
    def store(self) -> Store:
        """The store, by the key that the agent has; without an agent, by one that opens nothing."""
        assert self.service is not None
        return self.service._session.store

    @property
    def _dispatcher(self) -> ModelDispatcher:
        assert self.service is not None
        dispatcher = self.service._restarts._dispatcher
        assert isinstance(dispatcher, ModelDispatcher)
        return dispatcher

    def _start(self) -> None:
        parts = Parts(
            presence=lambda _fleet, _record: None,
            sender=lambda: ModelSender(self.journal),
            watch=ModelWatch,
            hire=ModelDispatcher,
            stop=lambda: ModelStop(self.clock),
            clock=self.clock.parts(),
            engine_thread=self._new_thread,
        )
        if self.engine is not None:
            parts = replace(parts, engine=self.engine)
        try:
            self.service = Service(self.top / "config.toml", self._connect, parts=parts)
            self._turned = Turn()
        except (KeyFileError, StoreError):
            assert self.full or self.key_mode != 0o400, "the agent does not start on a host that is well"

    def _new_thread(self) -> ModelThread:
        self._thread = ModelThread()
        return self._thread

    def _connect(self, _on_job: Callable[[str], None]) -> ModelSystemd:
        if not self.systemd.is_reachable:
            raise BusError("the bus is gone", hint="wait")
        return self.systemd

    def _bury(self) -> None:
        self._is_dead = False
        service, self.service = self.service, None
        self._thread = ModelThread()
        if service is not None and service._sender.is_behind:
            self.journal.is_gappy = True
        if self._is_key_new:
            self._lose(set(VMS))
            self._is_key_new = False

    def _lose(self, vms: set[str]) -> None:
        """Nobody opens any more what VMs ran: the host's key was replaced while no agent had it."""
        self.blind |= vms
        for vm in vms:
            self.systemd.vms[vm].is_lost = True

    def _is_carried_over(self) -> bool:
        return self.service is not None and self.key() == self.service._session.store.key

    def _effect(self) -> None:
        if self._is_dead:
            raise CrashError
        if self.interruption is None:
            return
        left, do = self.interruption
        self.interruption = (left - 1, do) if left else None
        if not left:
            do()

    def _fsync(self, descriptor: int) -> None:
        self._effect()
        kind = "directories" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "files"
        if self.full in {kind, "all"}:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    # The host.

    @property
    def _key_file(self) -> Path:
        return self.top / "key/credential.secret"

    @property
    def key_mode(self) -> int:
        """The permissions of the host's key."""
        return stat.S_IMODE(self._key_file.stat().st_mode)

    def key(self) -> CredentialKey | None:
        """The host's key, as systemd takes it."""
        try:
            return read_host_key(self._key_file, machine_id=MACHINE_ID)
        except KeyFileError:
            return None

    def replace_key(self) -> None:
        """The host gets another key."""
        self._key_file.unlink()
        with patch("os.fsync"):
            create_key(self._key_file, machine_id=MACHINE_ID)
        self._is_key_new = True
        gone = set(VMS) if self.service is None else set(VMS) - self.service._session.config.vms.keys()
        self._lose(gone)

    def chmod_key(self, mode: int) -> None:
        """Somebody gives the host's key a mode."""
        self._key_file.chmod(mode)

    def configure(self, settings: Settings) -> None:
        """Write the configuration's file; nothing reads it yet."""
        self.settings = settings
        extra = {
            "a": f'policy = "{settings.policy}"\n',
            "b": f"restarts_per_hour = {settings.restarts_per_hour}\nunits = {{ {settings.units} }}\n",
            "c": f'health = ["/bin/true"]\nquiet_seconds = {settings.quiet_seconds}\n',
        }
        canary = (
            'canaries = ["a"]\ncanary_seconds = 5\n' if settings.is_canary and "a" in settings.vms else ""
        )
        text = (
            f'runtime_directory = "{self.top}/run"\nstate_directory = "{self.top}/state"\n'
            f'host_key = "{self._key_file}"\nmachine_id_file = "{self.top}/machine-id"\n'
            f'[source]\npath = "{self.top}/secrets"\n'
            f"[rollout]\nstamp_seconds = 1\nretry_seconds = 1\nattempts = {settings.attempts}\n"
            f'switch_lock = "{self.top}/switch"\nswitch_seconds = 60\n{canary}'
            f"pause_seconds = {settings.pause_seconds}\n{self.fleet}"
        )
        if settings.has_other:
            text += f'[sources.other]\npath = "{self.top}/other"\n'
            extra["c"] += PAIRS
        for vm in settings.vms:
            text += f"[vms.{vm}]\n{extra[vm]}"
            if vm in settings.live:
                text += f'live = true\non_live_failure = "{settings.on_live_failure}"\n'
            text += f"[vms.{vm}.credentials]\n{_TABLES[vm]}"
            if settings.has_other:
                text += TABLES.get(vm, "")
        (self.top / "config.toml").write_text(text)

    def publish(self, secrets: Mapping[str, str]) -> None:
        """A new generation takes the place of the one before, as sops-nix does it."""
        self._number += 1
        directory = self.top / "secrets.d" / str(self._number)
        directory.mkdir(parents=True)
        for name, value in secrets.items():
            (directory / name).write_text(value)
        (self.top / "new").symlink_to(directory)
        (self.top / "new").rename(self.top / "secrets")
        shutil.rmtree(self.top / "secrets.d" / str(self._number - 1), ignore_errors=True)
        self.secrets = dict(secrets)
        self._note_changes()

    def publish_dry(self) -> None:
        """A generation is written and not switched to."""
        (self.top / "secrets.d" / f"dry{self._number}").mkdir(parents=True, exist_ok=True)

    def write_in_place(self, name: str, value: str) -> None:
        """A secret is written where it is."""
        if self.secrets is not None:
            (self.top / "secrets" / name).write_text(value)
            self.secrets = {**self.secrets, name: value}
            self._note_changes()

    def remove_source(self) -> None:
        """The source vanishes, until something is published again."""
        (self.top / "secrets").unlink(missing_ok=True)
        self.secrets = None

    def publish_other(self, value: str, neighbour: int, certificate: int, key: int) -> None:
        """A new generation of the second source."""
        self.other.publish(value, neighbour, certificate, key)
        self._note_changes()

    def write_other_in_place(self, name: str, text: str) -> None:
        """A file of the second source is written where it is."""
        self.other.write_in_place(name, text)
        self._note_changes()

    def begin_switch(self) -> None:
        """A NixOS switch takes its lock."""
        if self._switch is None:
            self._switch = os.open(self.top / "switch", os.O_RDWR | os.O_CLOEXEC)
            fcntl.flock(self._switch, fcntl.LOCK_EX)
            self._list_locks()

    def end_switch(self) -> None:
        """It is done."""
        if self._switch is not None:
            os.close(self._switch)
            self._switch = None
            self._list_locks()

    def _list_locks(self) -> None:
        """Have the kernel's list of locks, as it is now, where the agent looks for it."""
        lines = ["0: FLOCK\n"]
        if self._switch is not None:
            switch = f":{os.fstat(self._switch).st_ino} "
            found = nixos.LOCKS[-1].read_text().splitlines(keepends=True)
            lines += [line for line in found if switch in line]
        (self.top / "locks").write_text("".join(lines))

    def forge(self, vm: str, how: str) -> None:
        """A VM's user writes what it can: its runtime directory, where the VM runs."""
        path = stamp_path(vm, self.top / "run")
        if not path.parent.is_dir() or path.parent.is_symlink():
            return
        model = self.systemd.vms[vm]
        path.unlink(missing_ok=True)
        match how:
            case "fifo":
                os.mkfifo(path)
            case "link":
                path.symlink_to("/etc/passwd")
            case "junk":
                path.write_bytes(b'{"generation": 1e999')
            case "huge":
                fields = json.loads(_stamp(vm, model.invocation_id).to_bytes())
                path.write_bytes(json.dumps({**fields, "generation": 2**40}).encode())
            case "neighbour":
                path.write_bytes(_stamp("b" if vm == "a" else "a", model.invocation_id).to_bytes())
            case "full":
                path.write_bytes(_stamp(vm, model.invocation_id, OEM_TOTAL_MAX).to_bytes())
                self.forged[vm] = model.invocation_id
            case "digest":
                path.write_bytes(_stamp(vm, model.invocation_id).to_bytes())
            case _:
                pass  # it only removes the report

    def mend(self) -> None:
        """All faults of the host cease."""
        self.full = ""
        self.systemd.is_reachable = self.journal.is_taking = True
        for vm in self.systemd.vms.values():
            vm.next_result = vm.guest.next_result = vm.next_unit_result = "done"
        self.end_switch()
        if self.key_mode != 0o400:
            self.chmod_key(0o400)

    # What should be.

    def policy(self, vm: str) -> Policy:
        """A VM's policy in force."""
        assert self.service is not None
        return self.service._session.config.vm(vm).policy

    def wanted(self, vm: str) -> dict[str, bytes] | None:
        """What a VM should get, by the published bytes alone; None where that cannot be made."""
        of_other = self.other.wanted(vm) if self.settings.has_other else {}
        if self.secrets is None or of_other is None:
            return None
        values = {**of_other, **({"T": b"t"} if vm == "b" else {})}
        for name, secret, required in USES[vm]:
            if self.secrets.get(secret):
                values[name] = self.secrets[secret].encode()
            elif required:
                return None
        return values

    def _note_changes(self) -> None:
        for vm in VMS:
            wanted = self.wanted(vm)
            if wanted is not None and wanted != self._wanted_before[vm]:
                self.allowed[vm] += 1
                self._wanted_before[vm] = wanted

    def _sealed(self, vm: str) -> tuple[Manifest, dict[str, bytes]] | None:
        """What a start of a VM would open now, with the host's key as it is."""
        key = self.key()
        if key is None:
            return None
        store = Store(self.top / "state", key)
        manifest = store.current(vm)
        if manifest is None:
            return None
        try:
            values = {name: value.reveal() for name, value in store.values(vm).items()}
        except (StoreError, SealError):
            return None
        values.pop(PUSH_MANIFEST, None)
        return manifest, values

    def _opened(self, vm: str) -> tuple[Manifest, dict[str, bytes]] | None:
        opened = self._sealed(vm)
        if opened is not None:
            self.blind.discard(vm)
        self.ordered.discard(vm)
        return opened

    def _before_restart(self, vm: ModelVm) -> None:
        """Called when the agent asks for a restart."""
        self._note_turn(vm)
        assert self.is_racing or not vm.is_stopped_by_hand, f"{vm.name} is started though it was stopped"
        if not vm.is_up or self.is_racing:
            return  # nothing to lose; or what the agent saw is of the past: how it ends is checked later
        sealed = self._sealed(vm.name)
        assert sealed is not None, f"{vm.name} is restarted into a start that cannot work"
        assert not self.store.is_held(vm.name), f"{vm.name} is restarted though it is held"
        before = self.service is not None and self.service._session.config.vm(vm.name).units.before
        is_taken_out = vm.is_out_of_service or not vm.guest.is_trusted
        assert is_taken_out or not before, f"{vm.name} is restarted while it is in use"
        if vm.name in self.ordered | self.rolled_back | self.blind:
            return
        # An order is pending until the agent has seen its restart end, and takes what is sealed by then.
        has_order = self.service is not None and self.service._orders.given(vm.name) is not None
        assert has_order or self.policy(vm.name) is Policy.RESTART, (
            f"{vm.name} is restarted against its policy"
        )
        if not vm.guest.is_trusted:
            return  # a push failed: the agent may not know what the guest holds, and restarts it
        assert sealed[1] != vm.values, f"{vm.name} is restarted onto what it runs"
        if not vm.is_sick and not has_order:
            assert sealed[1] == self.wanted(vm.name), (
                f"{vm.name} is restarted onto something else than is published"
            )

        is_live = self.service is not None and self.service._session.config.vm(vm.name).live
        assert not (is_live and vm.guest.takes_pushes) or vm.is_sick, (
            f"{vm.name} is restarted though its guest takes pushes"
        )

    def _note_turn(self, vm: ModelVm) -> None:
        """The pause between VMs is kept, except for a VM that is down or sick, or that has an order."""
        assert self.service is not None
        config = self.service._session.config
        pause = config.rollout.pause_seconds
        if not pause:  # nothing is noted
            self.worked.pop(vm.name, None)
            return
        last, self.worked[vm.name] = self.worked.get(vm.name, 0.0), self.clock.now
        is_again = self.clock.now - last < pause
        if (
            self.is_racing
            or is_again
            or not vm.is_up
            or vm.is_sick
            or vm.name in self.ordered | self.rolled_back
        ):
            return
        others = [moment for name, moment in self.worked.items() if name in config.vms and name != vm.name]
        assert all(self.clock.now - moment >= pause for moment in others), f"{vm.name} begins in the pause"

    def _before_push(self, vm: ModelVm, values: Mapping[str, bytes]) -> None:
        """Called when the agent asks for a push of these values."""
        self._note_turn(vm)
        if self.is_racing:
            return
        assert self.service is not None
        assert self.service._session.config.vm(vm.name).live, f"{vm.name} is not live, and gets a push"
        if vm.name in self.ordered | self.blind:
            return
        assert not self.store.is_held(vm.name), f"{vm.name} gets a push though it is held"
        assert self.policy(vm.name) is Policy.RESTART, f"{vm.name} gets a push against its policy"
        assert values == self.wanted(vm.name), f"{vm.name} gets a push of something else than is published"
        assert not vm.guest.is_noted or values != vm.values, f"{vm.name} gets a push of what it has"

    def _after_push(self, vm: ModelVm, status: int) -> None:
        if status == 0:
            self.blind.discard(vm.name)
        self.ordered.discard(vm.name)
        wanted = self.wanted(vm.name)
        if wanted is not None and status == Exit.UNDONE:
            self.blamed[vm.name] = wanted

    def _after_restart(self, vm: ModelVm, result: str) -> None:
        self.rolled_back.discard(vm.name)
        if result != "done":
            self.allowed[vm.name] += 1
        # The start of a VM that was down, and was canceled, has left it down: so has one that has failed.
        wanted = self.wanted(vm.name)
        if wanted is not None and result != "done" and (result != "canceled" or not vm.is_up):
            self.blamed[vm.name] = wanted

    def _told(self, record: dict[str, str]) -> None:
        """Called with each record of the audit that the journal takes."""
        arrivals = {Event.RESTARTED.value, Event.PUSHED.value}
        if record["MESSAGE_ID"] not in arrivals or self.is_racing:
            return
        vm = self.systemd.vms[record["CREDFERRY_VM"]]
        if self.service is not None and not self.service._sender.is_behind:
            assert int(record["CREDFERRY_GENERATION"]) == vm.generation, "the audit names another generation"


def new_top() -> Path:
    """A directory for one host, in memory where there is such."""
    return Path(tempfile.mkdtemp(dir=_SHARED_MEMORY if _SHARED_MEMORY.is_dir() else None))


def _stamp(vm: str, invocation: str, other_oem_bytes: int = 0) -> Stamp:
    return Stamp(
        vm=vm,
        generation=1,
        digest="d" * 64,
        run="e" * 32,
        invocation_id=invocation or "0" * 32,
        channel=Channel.API,
        other_oem_bytes=other_oem_bytes,
    )
