# SPDX-License-Identifier: MIT
"""A model world around the real controller: whatever happens, VMs end on what is published, restarted once.

The store, the source, the stamps and the decisions are real, in a directory. systemd and journald are
modelled, as no real ones could be crashed and rewound thousands of times: the model of a unit starts a
launcher that reads the current generation and leaves a stamp, as the real one does.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from unittest.mock import patch

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agent.config import Config, parse
from agent.errors import BusError
from agent.journal import Audit
from agent.journald import Sender
from agent.keys import CredentialKey, hashed_machine_id
from agent.notes import Outcome
from agent.observe import Observer
from agent.pace import Pacer
from agent.rollout import Rollout
from agent.sealer import Sealer
from agent.store import Store
from agent.units import UnitState
from launcher.handoff import EVIDENCE_PARENT, stamp_path
from tests.support.evidence import leave
from tests.support.numbers import Number, note

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

CONFIG = """
[rollout]
retry_seconds = 0
stamp_seconds = 0
[vms.a.credentials]
X = { secret = "x" }
Y = { secret = "y", required = false }
[vms.b.credentials]
X = { secret = "x" }
T = { text = "t" }
[vms.c]
health = ["/bin/true"]
[vms.c.credentials]
Z = { secret = "z" }
"""
VMS = ("a", "b", "c")
USES = {
    "a": [("X", "x", True), ("Y", "y", False)],
    "b": [("X", "x", True)],
    "c": [("Z", "z", True)],
}
"""What the configuration above says, once more: credential, secret, whether it is required."""
VALUES = st.sampled_from(["1", "2", "bad", "sick"])
SECRETS = st.fixed_dictionaries({"x": VALUES, "z": VALUES}, optional={"y": VALUES}) | st.dictionaries(
    st.sampled_from("xyz"), st.sampled_from(["1", ""]), max_size=3
)
"""Mostly whole, at times lacking; a VM does not start with ``bad``, and with ``sick`` it is not healthy."""
RUNS = int(os.environ.get("CREDFERRY_MODEL_RUNS", "500"))
YEARS = 366 * 86_400 * 10**9
MACHINE_ID = "5ea1ed00c0ffee00c0ffee00c0ffee00"
KEY = CredentialKey(b"k" * 4096)
SHARED_MEMORY = Path("/dev/shm")


class CrashError(BaseException):
    """The agent's process is gone, at once; not an Exception, so that nothing in it can catch it."""


class ModelSystemd:
    """systemd as the agent knows it. ``effect`` is called before and after each restart."""

    def __init__(self, store: Store, runtime: Path, effect: Callable[[], None]) -> None:
        self.store = store
        self.runtime = runtime
        self.effect = effect
        self.active: dict[str, bool] = dict.fromkeys(VMS, False)
        self.failed: dict[str, bool] = dict.fromkeys(VMS, False)
        self.down_by_agent: dict[str, bool] = dict.fromkeys(VMS, False)
        self.invocations: Counter[str] = Counter()
        self.restarts: Counter[str] = Counter()
        self.running: dict[str, dict[str, bytes]] = {}
        self.good: dict[str, dict[str, bytes]] = {}
        """What each VM last ran well, as far as anybody has asked."""
        self.by_hand: dict[str, dict[str, bytes]] = {}
        """What somebody last started it on, whose health nobody asks for."""
        self.connected = True
        self.on_restart: Callable[[str], None] = lambda _: None

    def unit(self, name: str) -> UnitState:
        """See `SystemManager`."""
        self._reach()
        vm = name.removeprefix("microvm@").removesuffix(".service")
        state = "active" if self.active[vm] else "failed" if self.failed[vm] else "inactive"
        return UnitState(name, "loaded", state, "", self._invocation(vm), active_seconds=60.0)

    def units(self, invocations: Mapping[str, str]) -> dict[str, UnitState]:
        """See `SystemManager`."""
        return {name: self.unit(name) for name in invocations}

    def try_restart(self, name: str) -> str:
        """See `SystemManager`. The agent can die before or after the restart."""
        self._reach()
        self.effect()
        vm = name.removeprefix("microvm@").removesuffix(".service")
        if self.active[vm]:
            self.on_restart(vm)
            self.restarts[vm] += 1
            self.start_vm(vm)
            self.down_by_agent[vm] = self.failed[vm]
        self.effect()
        return "done"

    def restart_failed(self, name: str) -> str:
        """See `SystemManager`."""
        self._reach()
        self.effect()
        vm = name.removeprefix("microvm@").removesuffix(".service")
        is_sick = vm == "c" and b"sick" in self.running[vm].values()
        assert self.failed[vm] or is_sick, "started though it was not down after a failure"
        self.start_vm(vm)
        self.down_by_agent[vm] = self.failed[vm]
        self.effect()
        return "done"

    def start(self, name: str) -> str:
        """See `SystemManager`: the only unit that the agent starts is that of a health check."""
        self._reach()
        self.effect()
        vm = name.removeprefix("credferry-health@").removesuffix(".service")
        assert vm == "c", "a check of a VM that has none"
        is_healthy = self.active[vm] and b"sick" not in self.running[vm].values()
        if is_healthy:
            self.good[vm] = self.running[vm]
        self.effect()
        return "done" if is_healthy else "failed"

    def close(self) -> None:
        """Nothing to let go of."""

    def start_vm(self, vm: str) -> None:
        """The unit starts, or starts anew; without a generation it cannot."""
        self.invocations[vm] += 1
        self.stop(vm)
        manifest = self.store.current(vm)
        if manifest is None:
            return
        values = {name: value.reveal() for name, value in self.store.values(vm).items()}
        if b"bad" in values.values():
            self.failed[vm] = True
            return
        self.active[vm] = True
        self.running[vm] = values
        if vm != "c" or b"sick" not in values.values():
            self.good[vm] = values
        leave(self.runtime, manifest, self._invocation(vm))

    def stop(self, vm: str) -> None:
        """The unit stops, and its runtime directory goes with it."""
        self.active[vm] = self.failed[vm] = self.down_by_agent[vm] = False
        shutil.rmtree(stamp_path(vm, self.runtime).parent, ignore_errors=True)
        for evidence in (self.runtime / EVIDENCE_PARENT).glob(f"{vm}@*"):
            evidence.unlink()

    def _invocation(self, vm: str) -> str:
        return f"{self.invocations[vm]:032x}"

    def _reach(self) -> None:
        if not self.connected:
            raise BusError("the bus is gone", hint="wait")


class World(RuleBasedStateMachine):
    """What may happen to a host, in any order."""

    runs: ClassVar[int] = 0
    states: ClassVar[set[object]] = set()

    def __init__(self) -> None:
        super().__init__()
        World.runs += 1
        self.clock_offset = 0
        now = time.time_ns
        self.top = Path(tempfile.mkdtemp(dir=SHARED_MEMORY if SHARED_MEMORY.is_dir() else None))
        self.config: Config = parse(CONFIG.encode(), self.top / "config.toml")
        self.config = _replaced(self.config, self.top)
        self.store = Store(self.top / "state", KEY)
        self.pacer = Pacer(self.config, self.store)
        self.interruption: tuple[int, Callable[[], None]] | None = None
        self.systemd = ModelSystemd(self.store, self.top / "run", self._effect)
        self.systemd.on_restart = self._check_restart
        self.number = 0
        self.racing = False
        self.changes: Counter[str] = Counter()
        self.secrets: dict[str, str] | None = None
        self.wanted_before: dict[str, dict[str, bytes] | None] = dict.fromkeys(VMS)
        (self.top / "run").mkdir()
        self.patches: list[Any] = [
            patch.object(Sender, "send", lambda _sender, _fields: self._effect()),
            patch("os.fsync", lambda _descriptor: self._effect()),
            # The kernel takes no time before 1970.
            patch("time.time_ns", lambda: max(0, now() + self.clock_offset)),
        ]
        for each in self.patches:
            each.start()
        self.publish({"x": "1", "y": "1", "z": "1"})
        self.look()
        for vm in VMS:
            self.systemd.start_vm(vm)

    def teardown(self) -> None:
        """However it went, left alone it ends well."""
        self.systemd.connected = True
        self.settle()
        for each in self.patches:
            each.stop()
        shutil.rmtree(self.top)

    @rule(secrets=SECRETS)
    def publish(self, secrets: dict[str, str]) -> None:
        """A new generation: new values, old values again, missing or empty ones."""
        self.number += 1
        directory = self.top / "secrets.d" / str(self.number)
        directory.mkdir(parents=True)
        for name, value in secrets.items():
            (directory / name).write_text(value)
        (self.top / "new").symlink_to(directory)
        (self.top / "new").rename(self.top / "secrets")
        if self.number > 1:
            shutil.rmtree(self.top / "secrets.d" / str(self.number - 1), ignore_errors=True)
        self.secrets = secrets
        for vm in VMS:
            wanted = self._wanted(vm)
            if wanted is not None and wanted != self.wanted_before[vm]:
                self.changes[vm] += 1
                self.wanted_before[vm] = wanted

    @rule()
    def remove_source(self) -> None:
        """The source vanishes, until something is published again."""
        (self.top / "secrets").unlink(missing_ok=True)
        self.secrets = None

    @rule()
    def look(self) -> None:
        """One turn of the agent: look, seal, restart; a crash may end it anywhere."""
        rollout = self._rollout()
        try:
            while True:
                observer = rollout.observer
                look = observer.look_or_refuse(self.config.vms.values(), self.systemd)
                rollout.forget_ended(look)
                Sealer(self.store, observer, rollout.audit).seal_due(look)
                look = self.pacer.hold_back(look)
                due = [decision.vm.name for decision in look.decisions if decision.needs_rollout]
                if not due:
                    break
                rollout.restart_all(due, self.systemd)
        except (BusError, CrashError):
            pass

    @rule(effects=st.integers(min_value=0, max_value=60))
    def crash_during_a_turn(self, effects: int) -> None:
        """The agent dies at its n-th effect: a write made durable, a record, before or after a restart."""
        self._interrupted_turn(effects, _crash)

    @rule(effects=st.integers(min_value=0, max_value=100), secrets=SECRETS)
    def publish_and_crash(self, effects: int, secrets: dict[str, str]) -> None:
        """Something is published, and the agent dies on the way to rolling it out, or back."""
        self.publish(secrets)
        self._interrupted_turn(effects, _crash)

    @rule(effects=st.integers(min_value=0, max_value=60), secrets=SECRETS)
    def publish_during_a_turn(self, effects: int, secrets: dict[str, str]) -> None:
        """Another generation is published while the agent works."""
        self._interrupted_turn(effects, lambda: self.publish(secrets))

    @rule(effects=st.integers(min_value=0, max_value=60))
    def look_during_a_turn(self, effects: int) -> None:
        """While a VM is restarted, or put back, the loop looks and seals."""
        self._interrupted_turn(effects, self._glance)

    @rule(vm=st.sampled_from(VMS))
    def restart_by_hand(self, vm: str) -> None:
        """Somebody restarts or starts a VM, which gets the current generation."""
        self.systemd.start_vm(vm)
        if self.systemd.active[vm]:
            self.systemd.by_hand[vm] = self.systemd.running[vm]

    @rule(vm=st.sampled_from(VMS))
    def stop_by_hand(self, vm: str) -> None:
        """Somebody stops a VM."""
        self.systemd.stop(vm)

    @rule(vm=st.sampled_from(VMS))
    def hold_or_release(self, vm: str) -> None:
        """An operator's hold, which keeps the agent from restarting the VM."""
        self.store.hold(vm, held=not self.store.is_held(vm))

    @rule(vm=st.sampled_from(VMS))
    def retry(self, vm: str) -> None:
        """An operator's wish that what failed is tried once more."""
        attempt = self.store.attempt(vm)
        if attempt is not None:
            self.store.record_attempt(vm, msgspec.structs.replace(attempt, outcome=Outcome.RETRY))
            self.changes[vm] += 1

    @rule(years=st.integers(min_value=-20, max_value=20))
    def jump(self, years: int) -> None:
        """The wall clock is set."""
        self.clock_offset += years * YEARS

    @rule()
    def lose_or_regain_the_bus(self) -> None:
        """Systemd cannot be reached for a while."""
        self.systemd.connected = not self.systemd.connected

    @rule()
    @precondition(lambda self: self.systemd.connected)
    def settle(self) -> None:
        """Left alone, the agent brings every active VM to exactly the published values, and then rests."""
        self.look()
        self.look()
        before = self.systemd.restarts.copy()
        self.look()
        assert self.systemd.restarts == before, "a restart without a change"
        for vm in VMS:
            wanted = self._wanted(vm)
            assert not self.systemd.down_by_agent[vm], f"{vm} was taken down and left there"
            if wanted is None or not self.systemd.active[vm] or self._is_spared(vm):
                continue
            is_no_good = b"bad" in wanted.values() or (vm == "c" and b"sick" in wanted.values())
            good = self.systemd.good[vm]
            expected = [good, self.systemd.by_hand.get(vm, good)] if is_no_good else [wanted]
            assert self.systemd.running[vm] in expected, f"{vm} does not run what is published"

    @invariant()
    def seen(self) -> None:
        """Counts states of the world that differ."""
        attempts = [self.store.attempt(vm) for vm in VMS]
        World.states.add(
            (
                tuple(sorted((self.secrets or {"": ""}).items())),
                self.systemd.connected,
                *((self.systemd.active[vm], self.systemd.failed[vm], self.store.is_held(vm)) for vm in VMS),
                *(str(sorted(self.systemd.running.get(vm, {}).items())) for vm in VMS),
                *(attempt.outcome if attempt else None for attempt in attempts),
            )
        )

    @invariant()
    def what_failed_is_not_current(self) -> None:
        """A VM that was put back starts on what it was put back to, whoever starts it."""
        for vm in VMS:
            attempt, current = self.store.attempt(vm), self.store.current(vm)
            if attempt is not None and attempt.outcome is Outcome.ROLLED_BACK and attempt.previous:
                assert current is not None
                is_put_back = current.generation == attempt.previous
                assert is_put_back or current.digest != attempt.digest, "what failed is current again"

    @invariant()
    def never_more_than_once_for_a_change(self) -> None:
        """Each VM was restarted at most once for each change of what it should get."""
        for vm in VMS:
            assert self.systemd.restarts[vm] <= self.changes[vm]

    def _check_restart(self, vm: str) -> None:
        assert not self.store.is_held(vm), "a restart of what is held"
        if self.racing:
            return  # what the agent saw is no longer what is published; that it settles is checked later
        wanted = self._wanted(vm)
        assert wanted is not None, "a restart into absence"
        assert self.systemd.running[vm] != wanted, "a restart without a change"
        sealed = {name: value.reveal() for name, value in self.store.values(vm).items()}
        assert sealed == wanted, "a restart onto something else than is published"

    def _wanted(self, vm: str) -> dict[str, bytes] | None:
        """What a VM should get, by the published bytes alone; None where that cannot be made."""
        published = self.secrets or {}
        values = {"T": b"t"} if vm == "b" else {}
        for name, secret, required in USES[vm]:
            if published.get(secret):
                values[name] = published[secret].encode()
            elif required:
                return None
        return values if self.secrets is not None else None

    def _is_spared(self, vm: str) -> bool:
        """Whether the VM is held back: by an operator, or since another one failed on the same change."""
        attempt = self.store.attempt(vm)
        return self.store.is_held(vm) or (attempt is not None and attempt.outcome is Outcome.HALTED)

    def _interrupted_turn(self, effects: int, do: Callable[[], None]) -> None:
        self.interruption = (effects, do)
        self.racing = True
        self.look()
        self.racing = False
        self.interruption = None

    def _glance(self) -> None:
        """Do what the loop does beside the threads that restart VMs, once no lock is in its way."""
        with self.store.lock(wait=False) as sealing, self.store.lock("audit.lock", wait=False) as telling:
            is_free = sealing and telling
        if not is_free:
            self.interruption = 0, self._glance
            return
        rollout = self._rollout()
        with suppress(BusError):
            look = rollout.observer.look_or_refuse(self.config.vms.values(), self.systemd)
            rollout.forget_ended(look)
            Sealer(self.store, rollout.observer, rollout.audit).seal_due(look)

    def _rollout(self) -> Rollout:
        observer = Observer(self.config, self.store)
        return Rollout(self.config, self.store, observer, Audit(self.store), self.pacer)

    def _effect(self) -> None:
        if self.interruption is None:
            return
        left, do = self.interruption
        self.interruption = (left - 1, do) if left else None
        if not left:
            do()


def _crash() -> None:
    raise CrashError


def _replaced(config: Config, top: Path) -> Config:
    source = msgspec.structs.replace(config.source, path=str(top / "secrets"))
    (top / "machine-id").write_text(MACHINE_ID)
    (top / "key").write_bytes(hashed_machine_id(MACHINE_ID) + b"k" * 4096)
    (top / "key").chmod(0o400)
    return msgspec.structs.replace(
        config,
        source=source,
        state_directory=str(top / "state"),
        runtime_directory=str(top / "run"),
        host_key=str(top / "key"),
        machine_id_file=str(top / "machine-id"),
    )


class TestWorld(World.TestCase):  # type: ignore[misc,valid-type]  # made by Hypothesis, at run time
    """All of it, so many times."""

    settings = settings(max_examples=RUNS, stateful_step_count=25)

    def runTest(self) -> None:  # noqa: N802 (unittest's name)
        """Whatever happens, VMs end on what is published, restarted once."""
        World.runs, World.states = 0, set()
        super().runTest()
        note(Number.MODEL_RUNS, World.runs)
        note(Number.MODEL_STATES, len(World.states))
