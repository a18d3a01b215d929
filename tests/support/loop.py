# SPDX-License-Identifier: MIT
"""The agent's real `Service` over a directory, with a modelled systemd; a test makes each turn of its loop.

Store, source, key, what tells of a start, and decisions are real. systemd is a model, and journald's socket
is left out: so a job can end in any result, and each record of the audit is seen as it is sent.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from credferry.agent.audit import chain
from credferry.agent.audit import writer as journal
from credferry.agent.audit.events import Event
from credferry.agent.config.loading import load
from credferry.agent.daemon.cycle import Turn
from credferry.agent.daemon.parts import Parts
from credferry.agent.daemon.service import Service
from credferry.agent.journald import Sender
from credferry.agent.rollout.engine_thread import EngineThread
from credferry.agent.sealing.keys import create_key
from credferry.agent.store.opening import open_store
from credferry.agent.systemd.units import UnitState
from credferry.launcher.handoff import (
    EVIDENCE_PARENT,
    PUSHED_PARENT,
    Channel,
    Stamp,
    evidence_name,
    stamp_path,
    write_stamp,
)
from tests.support.host import patience
from tests.support.world.journald import link

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from credferry.agent.reconcile.decision import Decision
    from credferry.agent.store.generations import Store

MACHINE_ID = "5ea1ed00c0ffee00c0ffee00c0ffee00"
_SECONDS = 20.0


@dataclass(slots=True)
class ModelUnits:
    """systemd as the agent knows it. ``boot`` is what a VM's unit does when it starts."""

    boot: Callable[[str], None]
    job: Callable[[str], str]
    """What becomes of a restart that is asked for, by its unit; systemd's word for the job's result."""
    health: Callable[[str], str] = lambda _name: "done"
    push: Callable[[str], str] = lambda _name: "failed"
    """What becomes of a push that is asked for, by the push unit's name."""
    pushes: list[str] = field(default_factory=list)
    restarts: list[str] = field(default_factory=list)
    ends: dict[str, str] = field(default_factory=dict)
    """How the last job of a unit has ended, where nothing else tells."""
    _states: dict[str, UnitState] = field(default_factory=dict)

    def unit(self, name: str) -> UnitState:
        """See `SystemManager`."""
        assert name.endswith(".service"), name
        return self._states.get(name, UnitState(name, "loaded", "inactive", "dead", ""))

    def units(self, invocations: Mapping[str, str]) -> dict[str, UnitState]:
        """See `SystemManager`."""
        return {name: self.unit(name) for name in invocations}

    def set(self, name: str, **changes: Any) -> None:  # noqa: ANN401 (whatever fields a unit has)
        """Have a unit be in another state."""
        self._states[name] = replace(self.unit(name), **changes)

    def try_restart(self, name: str) -> str:
        """See `SystemManager`."""
        self.restarts.append(name)
        return self.job(name)

    restart_failed = try_restart

    def ended(self, name: str) -> str:
        """See `SystemManager`."""
        return self.ends.get(name, "")

    def start(self, name: str) -> str:
        """See `SystemManager`: what is started is a health check or a push."""
        if name.startswith("credferry-push@"):
            self.pushes.append(name)
            return self.push(name)
        return self.health(name)

    def close(self) -> None:
        """See `SystemManager`."""


def _await_jobs(engine: EngineThread) -> None:
    """Return once the thread has done all that it was given: nothing ends it."""
    if engine._is_begun:
        done = threading.Event()
        engine.submit(done.set)
        assert done.wait(_SECONDS * patience()), "a call of the fleet's engine does not end"


def _no_pause(rollout: str) -> str:
    return "" if "retry_seconds" in rollout else "retry_seconds = 0\n"


class Loop:
    """A service that watches ``top/secrets`` for the VMs of a configuration, named here by its tables."""

    def __init__(self, top: Path, vms: str) -> None:
        self.top = top
        self.file = top / "config.toml"
        self.key = top / "key/credential.secret"
        self.sent: list[list[str]] = []
        """The audit's records, as they are sent."""
        self.units = ModelUnits(self.start_vm, self._restart, push=self.push)
        self.parts = Parts(presence=lambda _fleet, _record: None)
        self._number = 0
        self.key.parent.mkdir()
        (top / "machine-id").write_text(MACHINE_ID)
        self.new_key()
        self.configure(vms)

    def configure(self, vms: str, rollout: str = "") -> None:
        """Write the configuration's file; `Service` reads it when it starts, and when it is reloaded."""
        self.file.write_text(
            f'runtime_directory = "{self.top}/run"\nstate_directory = "{self.top}/state"\n'
            f'host_key = "{self.key}"\nmachine_id_file = "{self.top}/machine-id"\n'
            f'[source]\npath = "{self.top}/secrets"\nquiet_seconds = 0\n'
            f"[rollout]\nstamp_seconds = 1\n{_no_pause(rollout)}{rollout}\n{vms}"
        )

    @contextmanager
    def made(self) -> Iterator[Service]:
        """The service, of which nothing runs yet.

        A turn or a reload may start its threads, and they end here: one that went on would write, log and
        open files in the midst of the next test.
        """
        with patch.object(Sender, "send", self._take):
            engines: list[EngineThread] = []

            def engine_thread() -> EngineThread:
                engines.append(EngineThread())
                return engines[-1]

            parts = replace(self.parts, engine_thread=engine_thread)
            service = Service(self.file, lambda _on_job: self.units, parts=parts)
            self.service, self.turned = service, Turn()
            try:
                yield service
            finally:
                service._restarts.stop()
                service._watch.stop()
                for engine in engines:
                    _await_jobs(engine)

    @contextmanager
    def running(self) -> Iterator[Service]:
        """The service with its threads, without `Service.run`'s own loop: the test makes the turns."""
        with self.made() as service:
            service._watch.start()
            service._restarts.start()
            yield service

    def _take(self, fields: list[str]) -> bool:
        self.sent.append(list(fields))
        return True

    def publish(self, **secrets: str) -> None:
        """Publish a new generation, as sops-nix does."""
        self._number += 1
        directory = self.top / "secrets.d" / str(self._number)
        directory.mkdir(parents=True)
        for name, value in secrets.items():
            (directory / name).write_text(value)
        (self.top / "new").symlink_to(directory)
        (self.top / "new").rename(self.top / "secrets")

    @property
    def store(self) -> Store:
        """The store of the service."""
        return self.service._session.store

    def new_key(self) -> None:
        """Give the host another key."""
        made = self.key.with_name("made")
        create_key(made, machine_id=MACHINE_ID)
        made.rename(self.key)  # at no moment is there none, which the agent would make

    def start_vm(self, vm: str) -> None:
        """The VM's unit starts anew, on what is current, opened by the host's key of now."""
        unit = f"microvm@{vm}.service"
        number = int(self.units.unit(unit).invocation_id or "0", 16) + 1
        invocation = f"{number:032x}"
        manifest = open_store(load(self.file)).current(vm)
        if manifest is None:  # PID 1 cannot open its credentials
            self.units.set(unit, active="failed", sub="failed", result="exit-code", invocation_id=invocation)
            return
        evidence = self.top / "run" / EVIDENCE_PARENT
        evidence.mkdir(parents=True, exist_ok=True)
        (evidence / evidence_name(vm, invocation)).write_bytes(manifest.to_bytes())
        directory = stamp_path(vm, self.top / "run").parent
        directory.mkdir(parents=True, exist_ok=True)
        stamp = Stamp(vm, manifest.generation, manifest.digest, manifest.run, invocation, Channel.API, 0)
        write_stamp(directory, stamp)
        self.units.set(
            unit,
            active="active",
            sub="running",
            result="success",
            invocation_id=invocation,
            active_seconds=99.0,
        )

    def fail_vm(self, vm: str) -> str:
        """The VM's unit does not start. Returns systemd's word for the end of the job."""
        self.units.set(
            f"microvm@{vm}.service",
            active="failed",
            sub="failed",
            result="exit-code",
            invocation_id="9" * 32,
        )
        return "failed"

    def push(self, unit: str) -> str:
        """A push of what is current: the guest takes it, and root keeps the proof."""
        vm = unit.removeprefix("credferry-push@").removesuffix(".service")
        manifest = open_store(load(self.file)).current(vm)
        assert manifest is not None
        directory = self.top / "run" / PUSHED_PARENT
        directory.mkdir(parents=True, exist_ok=True)
        for name in (f"{vm}@before", vm):
            (directory / name).write_bytes(manifest.to_bytes())
        self.units.set(unit, result="success", exit_status=0)
        return "done"

    def fail_push(self, status: int, result: str = "exit-code") -> Callable[[str], str]:
        """A push whose unit fails with a status of the launcher."""

        def push(unit: str) -> str:
            (self.top / "run" / PUSHED_PARENT / unit.split("@")[1].removesuffix(".service")).unlink(
                missing_ok=True
            )
            self.units.set(unit, result=result, exit_status=status)
            return "failed"

        return push

    def stop_vm(self, vm: str) -> None:
        """An operator stops the VM."""
        self.units.set(
            f"microvm@{vm}.service", active="inactive", sub="dead", result="success", active_seconds=0.0
        )

    def _restart(self, unit: str) -> str:
        self.start_vm(unit.removeprefix("microvm@").removesuffix(".service"))
        return "done"

    def turn(self, until: Callable[[], object] | None = None) -> None:
        """Make a turn of the loop; or, with a condition, turns until it holds and nothing is under way."""
        end = time.monotonic() + _SECONDS * patience()
        while True:
            self.turned = self.service._turn(self.turned)
            if until is None or (until() and self._is_idle()):
                return
            assert time.monotonic() < end, "what was waited for did not come"
            time.sleep(0.01)

    def _is_idle(self) -> bool:
        dispatcher = self.service._restarts._dispatcher
        return not any(dispatcher.is_at_work(vm) for vm in self.service._session.config.vms)

    def decision(self, vm: str) -> Decision:
        """What a look decides about a VM now, by the service's own observer."""
        config = self.service._session.config
        return self.service._session.observer.look_or_refuse([config.vm(vm)], self.units).decisions[0]

    def decision_without_bus(self, vm: str) -> Decision:
        """The same where systemd cannot be asked."""
        config = self.service._session.config
        return self.service._session.observer.look_or_refuse([config.vm(vm)], None).decisions[0]

    def told(self) -> list[tuple[Event, str]]:
        """The audit's records, each once: which fact, and the message."""
        found: dict[str, tuple[Event, str]] = {}
        for fields in self.sent:
            known = dict(field.partition("=")[::2] for field in fields)
            found[known["CREDFERRY_HASH"]] = Event(known["MESSAGE_ID"]), known["MESSAGE"]
        return list(found.values())

    def events(self) -> list[Event]:
        """The facts of `told`."""
        return [event for event, _ in self.told()]

    def verify(self) -> tuple[str, ...]:
        """What ``credferry audit --verify`` finds wrong with all that was sent, by the host's key of now."""
        store = open_store(load(self.file))
        head = journal.kept_head(store.state)
        assert head is not None
        kept = chain.Kept(head.sequence, head.hash, head.sequence, head.sequence)
        links = [link(fields, number) for number, fields in enumerate(self.sent)]
        return chain.verify(links, store.key.derive("audit"), kept).findings


ONE_VM = '[vms.a.credentials]\nX = { secret = "x" }\n'
"""The configuration of `one_vm`. Its unit is `ONE_UNIT`."""
ONE_UNIT = "microvm@a.service"


@contextmanager
def one_vm(top: Path) -> Iterator[Loop]:
    """A running service with one VM, which runs generation 1, and is restarted once for each change."""
    made = Loop(top, ONE_VM)
    made.configure(ONE_VM, "attempts = 1")
    made.publish(x="one")
    with made.running():
        made.turn()
        made.start_vm("a")
        made.turn()
        yield made
